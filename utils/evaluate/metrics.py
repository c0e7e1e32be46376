"""PSNR and SSIM of two 8-bit RGB images: on RGB, as the challenge defines them, and on luma, as most papers print them.

The same images score about 2 dB more on luma. Never compare a figure of one kind with one of the other.
"""

import cv2
import numpy as np

from kernels.ssim import similarity_in_c
from utils.protocol import SHAVE, SSIM_WINDOW

PEAK = 255.0
WINDOW, SIGMA = SSIM_WINDOW, 1.5
STRIP = 32  # rows of SSIM computed at once: float64 maps of a whole photograph would not stay in the cache
COMPILED_PIXELS = 1 << 20  # from this size on, compiling SSIM's C takes less time than it saves
LUMA, BLACK = (65.481, 128.553, 24.966), 16.0  # ITU-R BT.601 of R, G, B in [0, 1], as in MATLAB's rgb2ycbcr
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(sr: np.ndarray, hr: np.ndarray, shave: int = SHAVE) -> float:
    """Return the peak signal-to-noise ratio [dB] of H x W x 3 uint8 images: 10 log10(255^2 / MSE), float64.

    The mean squared error is over all pixels and channels, without `shave` pixels at each side. Identical images give
    inf. Raise ValueError for other types, unequal shapes, or nothing left inside the border.
    """
    sr, hr = _shaved(sr, hr, shave)
    return _decibels(cv2.norm(sr, hr, cv2.NORM_L2SQR) / sr.size)  # a sum of whole numbers


def ssim(sr: np.ndarray, hr: np.ndarray, shave: int = SHAVE) -> float:
    """Return the structural similarity of H x W x 3 uint8 images, in [-1, 1] (Wang et al., 2004), float64.

    Gaussian 11 x 11 window, sigma 1.5, valid area only, K1 0.01, K2 0.03, L 255, population covariance. The mean
    is over pixels and channels, without `shave` pixels at each side. Raise ValueError as `psnr` does, and for images
    smaller than the window inside the border.
    """
    sr, hr = _shaved_for_ssim(sr, hr, shave)
    height, width = sr.shape[0] - WINDOW + 1, sr.shape[1] - WINDOW + 1  # of the valid area
    large = height * width >= COMPILED_PIXELS
    total = similarity_in_c(sr, hr, WINDOW, SIGMA, C1, C2) if large else None
    if total is None:
        total = _similarity_in_strips(sr, hr)
    return float(total / (height * width * 3))


def luma(image: np.ndarray) -> np.ndarray:
    """Return the luma of an H x W x 3 uint8 RGB image: H x W float64 in [16, 235], not rounded (ITU-R BT.601)."""
    return image @ (np.array(LUMA) / PEAK) + BLACK


def luma_psnr(sr: np.ndarray, hr: np.ndarray, shave: int = SHAVE) -> float:
    """Return `psnr` [dB] of the images' luma, with 255 as the peak. Raises ValueError as `psnr` does."""
    sr, hr = _shaved(sr, hr, shave)
    return _decibels(float(np.mean((luma(sr) - luma(hr)) ** 2)))


def luma_ssim(sr: np.ndarray, hr: np.ndarray, shave: int = SHAVE) -> float:
    """Return `ssim` of the images' luma. Raises ValueError as `ssim` does."""
    sr, hr = _shaved_for_ssim(sr, hr, shave)
    places = (sr.shape[0] - WINDOW + 1) * (sr.shape[1] - WINDOW + 1)
    return float(_similarity_in_strips(luma(sr), luma(hr)) / places)


def _similarity_in_strips(sr: np.ndarray, hr: np.ndarray) -> float:
    """Return the summed similarity over all positions of the window, and over channels if there are any."""
    total, height = 0.0, sr.shape[0] - WINDOW + 1
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height) + WINDOW - 1)
        total += _similarity(sr[rows], hr[rows]).sum()
    return total


def _similarity(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    x, y = sr.astype(np.float64), hr.astype(np.float64)
    mu_x, mu_y = _window_mean(x), _window_mean(y)
    mu_xy, mu_squares = mu_x * mu_y, mu_x * mu_x + mu_y * mu_y
    covariance = _window_mean(x * y) - mu_xy
    variances = _window_mean(x * x + y * y) - mu_squares  # only the sum of both variances is needed
    return (2 * mu_xy + C1) * (2 * covariance + C2) / ((mu_squares + C1) * (variances + C2))


def _decibels(mse: float) -> float:
    return float("inf") if mse == 0 else float(10 * np.log10(PEAK**2 / mse))


def _shaved(sr: np.ndarray, hr: np.ndarray, shave: int) -> tuple[np.ndarray, np.ndarray]:
    if sr.shape != hr.shape or sr.ndim != 3 or sr.shape[2] != 3:
        raise ValueError(f"shapes {sr.shape} and {hr.shape}: two H x W x 3 images of one size are needed")
    if sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise ValueError(f"dtypes {sr.dtype} and {hr.dtype}: uint8 is needed")
    height, width = sr.shape[:2]
    if min(height, width) <= 2 * shave:
        raise ValueError(f"shape {sr.shape[:2]} leaves nothing inside a border of {shave} pixels")
    inside = slice(shave, height - shave), slice(shave, width - shave)
    return sr[inside], hr[inside]


def _shaved_for_ssim(sr: np.ndarray, hr: np.ndarray, shave: int) -> tuple[np.ndarray, np.ndarray]:
    sr, hr = _shaved(sr, hr, shave)
    if min(sr.shape[:2]) < WINDOW:
        raise ValueError(f"shape {sr.shape[:2]} inside the border is smaller than the {WINDOW} x {WINDOW} window")
    return sr, hr


def _window_mean(image: np.ndarray) -> np.ndarray:
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA)
    half = WINDOW // 2
    return cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel)[half:-half, half:-half]
