"""The training set: memory-mapped sub-images, the patches of each step, and synthetic drawings."""
