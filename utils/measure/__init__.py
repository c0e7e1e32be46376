"""The figures: what PSNR, SSIM, runtime, memory and complexity are, and how a model is measured over a data set.

`evaluation` runs a model over images, `measurement` makes one record of everything. It uses `data` and `zoo`.
"""
