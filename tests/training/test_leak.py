"""No evaluation image, nor a crop of one, is among the photographs that the shipped weights were trained on."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pytest

from tests.helpers import photograph
from training.prepare import Cut, boxes, list_images, read_photograph
from utils.data.datasets import open_dataset
from utils.data.images import read_rgb

WINDOW, STEP = 128, 16  # of the windows that are compared [HR pixels]
BITS = 10  # of 64, in which the hashes of one place may differ: it lies up to half a step beside a window
FLAT = 6.0  # grey levels of deviation, below which a window shows nothing that could be told apart
ALIKE = 0.97  # correlation of what is the same place
Thumb = tuple[np.ndarray, np.ndarray]  # hashes, N uint64, and N x 256 normalized grey values


def windows(image: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """Yield WINDOW x WINDOW grey windows of an image that show something."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for top in range(0, grey.shape[0] - WINDOW + 1, step):
        for left in range(0, grey.shape[1] - WINDOW + 1, step):
            window = grey[top : top + WINDOW, left : left + WINDOW]
            if window.std() > FLAT:
                yield window


def thumbs(images: Iterable[np.ndarray]) -> Thumb:
    """Return the difference hashes (which of two neighbours of 9 x 8 is the brighter) and the 16 x 16 of windows."""
    hashes, small = [], []
    for window in images:
        coarse = cv2.resize(window, (9, 8), interpolation=cv2.INTER_AREA)
        hashes.append(np.packbits(coarse[:, 1:] > coarse[:, :-1]).view(np.uint64)[0])
        values = cv2.resize(window, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        small.append((values - values.mean()) / max(np.linalg.norm(values - values.mean()), 1e-6))
    return np.array(hashes, np.uint64), np.array(small, np.float32).reshape(-1, 256)


def found_in(image: np.ndarray, known: Thumb) -> float:
    """Return the highest correlation of a window of an image with a window that is known and has nearly its hash."""
    hashes, small = thumbs(windows(image, WINDOW))
    best = 0.0
    for one, values in zip(hashes, small, strict=True):
        near = np.bitwise_count(known[0] ^ one) <= BITS
        if near.any():
            best = max(best, float((known[1][near] @ values).max()))
    return best


@pytest.mark.parametrize(("top", "left"), [(0, 0), (37, 101), (63, 9)])
def test_crop_of_a_known_image_is_found_and_another_image_is_not(top, left):
    known_image, other = (cv2.GaussianBlur(photograph(400, 500, seed), (0, 0), 5) for seed in (1, 2))
    known = thumbs(windows(known_image, STEP))
    crop = known_image[top : top + 200, left : left + 200]
    compressed = cv2.imdecode(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_COLOR)
    assert found_in(compressed, known) > ALIKE
    assert found_in(other, known) < ALIKE


@pytest.mark.slow
def test_no_evaluation_image_is_among_the_photographs(shared):
    sets = [open_dataset(shared / "benchmarks" / name) for name in ("Set5", "Set14", "Photo2K", "DIV2K12")]
    known = thumbs(window for data in sets for pair in data.pairs for window in windows(read_rgb(pair.hr), STEP))
    assert len(known[0]) > 50_000
    leaks = []
    for path in list_images([shared / "train"]):
        image = read_photograph(path)
        for top, left, height, width in boxes(*image.shape[:2], Cut()):
            if found_in(image[top : top + height, left : left + width], known) > ALIKE:
                leaks.append(path.name)
    assert not leaks
