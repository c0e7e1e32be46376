"""Constants of the challenge that all subpackages share."""

SCALE = 4  # of super-resolution: an SR image has SCALE times the sides of its LR image
SHAVE = SCALE  # pixels that PSNR and SSIM leave out at each side
SSIM_WINDOW = 11  # pixels a side
