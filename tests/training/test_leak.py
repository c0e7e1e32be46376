"""No evaluation image, nor a crop of one, is among the photographs that the shipped weights were trained on.

A perceptual hash of whole windows would not do: it misses crops that lie between its windows, and takes one smooth sky
for another. So each window is searched for in all evaluation images, shrunk to an eighth; where it fits best, the fine
structure of both is compared at full size.
"""

import cv2
import numpy as np
import pytest

from tests.helpers import photograph
from training.prepare import Cut, boxes, list_images, read_photograph
from utils.data.datasets import open_dataset
from utils.data.images import read_rgb

WINDOW, SHRINK = 192, 8  # side of a window [pixels], and how much smaller images are for the search
AROUND = 12  # pixels by which a place found in the shrunk images may be off
# Correlations above which a place is looked at, and above which two windows are of one photograph: crops of the
# evaluation images, saved as JPEG of quality 70, reach 0.81 or more, two horizons in different photographs 0.52.
COARSE, FINE = 0.7, 0.65


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def fine(image: np.ndarray) -> np.ndarray:
    """Return an image without what is smooth in it."""
    return image - cv2.GaussianBlur(image, (0, 0), 2)


def correlation(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the correlation at each place of the image; 0 where one of both is flat."""
    found = cv2.matchTemplate(image, window, cv2.TM_CCOEFF_NORMED)
    return np.where(np.abs(found) <= 1, found, 0)


class Known:
    """Evaluation images, shrunk and side by side, to search windows in."""

    def __init__(self, images: list[np.ndarray]):
        self.images = [grey(image) for image in images]
        small = [
            cv2.resize(image, None, fx=1 / SHRINK, fy=1 / SHRINK, interpolation=cv2.INTER_AREA) for image in self.images
        ]
        self.wall = np.zeros((sum(len(image) for image in small), max(image.shape[1] for image in small)), np.float32)
        self.tops = np.cumsum([0] + [len(image) for image in small])
        for top, image in zip(self.tops, small, strict=False):
            self.wall[top : top + len(image), : image.shape[1]] = image

    def likeness(self, window: np.ndarray) -> float:
        """Return how well the fine structure of a grey window fits the place that its coarse one fits best."""
        side = WINDOW // SHRINK
        coarse = correlation(self.wall, cv2.resize(window, (side, side), interpolation=cv2.INTER_AREA))
        row, column = np.unravel_index(coarse.argmax(), coarse.shape)
        if coarse[row, column] < COARSE:
            return 0.0
        number = int(np.searchsorted(self.tops, row, side="right")) - 1
        top, left = (max(int(at) * SHRINK - AROUND, 0) for at in (row - self.tops[number], column))
        part = self.images[number][top : top + WINDOW + 2 * AROUND, left : left + WINDOW + 2 * AROUND]
        if min(part.shape) < WINDOW:
            return 0.0
        return float(correlation(fine(part), fine(window)).max())


def liveliest_window(image: np.ndarray) -> np.ndarray | None:
    """Return the WINDOW x WINDOW part of a grey image with the most fine structure, None if the image is smaller."""
    if min(image.shape) < WINDOW:
        return None
    energy = cv2.boxFilter(np.square(fine(image)), -1, (WINDOW, WINDOW), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = energy[: image.shape[0] - WINDOW + 1, : image.shape[1] - WINDOW + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return image[top : top + WINDOW, left : left + WINDOW]


def drawn(seed: int) -> np.ndarray:
    """Return an image with coarse and fine structure."""
    coarse = cv2.resize(photograph(50, 64, seed), (512, 400), interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(coarse, 0.7, cv2.GaussianBlur(photograph(400, 512, seed + 9), (0, 0), 1), 0.3, 0)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (37, 101), (63, 9)])
def test_crop_of_a_known_image_is_found_and_another_image_is_not(top, left):
    known = Known([drawn(1), drawn(2)])
    crop = drawn(2)[top : top + 240, left : left + 240]
    compressed = cv2.imdecode(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_COLOR)
    assert known.likeness(liveliest_window(grey(compressed))) > FINE
    assert known.likeness(liveliest_window(grey(drawn(3)))) < FINE


@pytest.mark.slow
def test_no_evaluation_image_is_among_the_photographs(shared):
    sets = [open_dataset(shared / "benchmarks" / name) for name in ("Set5", "Set14", "Photo2K", "DIV2K12")]
    known = Known([read_rgb(pair.hr_path) for data in sets for pair in data.pairs])
    leaks, searched = [], 0
    for path in list_images([shared / "train"]):
        image = grey(read_photograph(path))
        for top, left, height, width in boxes(*image.shape, Cut()):
            window = liveliest_window(image[top : top + height, left : left + width])
            if window is not None:
                searched += 1
                leaks += [path.name] * (known.likeness(window) > FINE)
    assert searched > 2000
    assert not leaks
