"""Training: prepare the data, feed it, run the recipe, fuse the result. Uses `utils/` and `models/`; neither knows it."""
