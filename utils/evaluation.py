"""Running a network over a data set: restore every image, time the forward pass, judge the result."""

from dataclasses import dataclass

import torch

from utils.errors import HarnessError, in_one_line
from utils.images import SCALE, crop_to_multiple, read_rgb, to_image, to_tensor, write_png
from utils.metrics import psnr, ssim
from utils.runtime import timed_forward


@dataclass(frozen=True)
class ImageResult:
    """One image: `psnr` [dB] and `ssim` are None where there is no HR, no weights, or (SSIM) nobody asked."""

    name: str
    lr_pixels: int
    runtime_ms: float
    psnr: float | None
    ssim: float | None


def evaluate(loaded, dataset, device, with_ssim=False, save_dir=None):
    """Yield an ImageResult per pair, in order; restored images go to `save_dir` under the HR's name.

    Raises HarnessError at an image that cannot be read, does not fit its partner, or is restored to another size than
    4x; what was yielded before stays good.
    """
    judged = dataset.has_hr and not loaded.missing_weights
    for pair in dataset.pairs:
        lr = read_rgb(pair.lr)
        hr = read_fitting_hr(pair, lr) if judged else None
        sr, runtime_ms = restore(loaded, lr, device)
        if save_dir is not None:
            write_png(save_dir / pair.name, sr)
        yield ImageResult(
            pair.name,
            lr.shape[0] * lr.shape[1],
            runtime_ms,
            psnr(sr, hr) if judged else None,
            ssim(sr, hr) if judged and with_ssim else None,
        )


def time_dataset(loaded, dataset, device):
    """Yield the runtime [ms] of each image's forward pass, in order, judging nothing."""
    for pair in dataset.pairs:
        yield restore(loaded, read_rgb(pair.lr), device)[1]


def restore(loaded, lr, device):
    """Return (SR, runtime [ms]): H x W x 3 uint8 upscaled to 4H x 4W x 3 uint8 by the protocol's conversions."""
    data_range = loaded.entry.data_range
    try:
        sr, runtime_ms = timed_forward(loaded.model, to_tensor(lr, data_range).to(device))
    except Exception as error:  # a stranger's code may raise anything
        raise HarnessError(
            f"{loaded.entry.file}: fails on an LR image of {lr.shape[1]} x {lr.shape[0]} ({in_one_line(error)})"
        ) from error
    expected = (1, 3, SCALE * lr.shape[0], SCALE * lr.shape[1])
    if not isinstance(sr, torch.Tensor) or sr.shape != expected:
        given = tuple(sr.shape) if isinstance(sr, torch.Tensor) else type(sr).__name__
        raise HarnessError(
            f"{loaded.entry.file}: output is {given} for an LR image of {lr.shape[:2]}, expected {expected}"
        )
    return to_image(sr, data_range), runtime_ms


def read_fitting_hr(pair, lr):
    """Read a pair's HR image, cropped to a multiple of 4. Raises HarnessError unless it is 4x as large as `lr`."""
    hr = crop_to_multiple(read_rgb(pair.hr))
    if hr.shape[:2] != (SCALE * lr.shape[0], SCALE * lr.shape[1]):
        raise HarnessError(
            f"{pair.lr}: {lr.shape[1]} x {lr.shape[0]} is not a quarter of {pair.hr.name} "
            f"({hr.shape[1]} x {hr.shape[0]} after cropping to a multiple of {SCALE}); make it again from the HR image"
        )
    return hr


def largest_lr(dataset, lr_pixels):
    """Read the LR image with the most pixels, given the count of each, in order: H x W x 3 uint8."""
    return read_rgb(dataset.pairs[max(range(len(lr_pixels)), key=lr_pixels.__getitem__)].lr)


def mean(values):
    """Plain mean, None for no values or missing ones."""
    values = list(values)
    return sum(values) / len(values) if values and None not in values else None
