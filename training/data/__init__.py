"""The training set: sub-images, read by memory map; the patches that each step sees; drawn and taught images."""
