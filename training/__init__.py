"""Training: prepare the data, feed it, run the recipe, fuse the result. It uses `utils/` and `models/`."""
