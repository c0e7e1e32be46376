"""What the challenge fixes for all rooms."""

SCALE = 4  # of super-resolution: an SR image has SCALE times the sides of its LR image
