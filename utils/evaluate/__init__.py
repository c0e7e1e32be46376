"""A model over a data set: PSNR and SSIM, one image after the other, and the record of everything.

`evaluation` runs a model over images, `measurement` makes one record of it. It uses `data`, `zoo` and `measure`.
"""
