"""Inputs that no network has seen: an image with new imperceptible changes in every pass, to defeat caches."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from utils.data.images import to_tensor


def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return H x W x 3 uint8 with every value moved by one grey level up or down, inwards at 0 and 255."""
    up = rng.integers(2, size=image.shape, dtype=np.uint8).astype(bool)
    up = (up & (image < 255)) | (image == 0)
    return np.where(up, image + np.uint8(1), image - np.uint8(1))


def fresh_inputs(image: np.ndarray, data_range: float, rng: np.random.Generator | None = None) -> Iterator[Tensor]:
    """Yield 1 x 3 x H x W float32 inputs without end, each a new `changed` version of an H x W x 3 uint8 image."""
    rng = rng or np.random.default_rng()  # unseeded, so that nobody can predict the inputs
    while True:
        yield to_tensor(changed(image, rng), data_range)
