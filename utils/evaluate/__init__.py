"""Evaluation of a model on a data set, image by image: PSNR, SSIM and the complete record.

`evaluation` runs a model on images. `measurement` makes one record of it. It uses `data`, `zoo` and `measure`.
"""
