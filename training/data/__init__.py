"""The training set: sub-images read by memory map, and the patches that each step sees."""
