"""Does a network know its training images by heart? python -m benchmarks.studies.variants --checkpoint MINE PUBLISHED

PSNR on sub-images of a training set as they are, and on variants of them: on another grid of LR pixels, smaller, as
negatives, with colours permuted. Where a network that never saw these images loses on a variant, the variant is harder.
What yours loses beyond that, it had learned by heart.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from training.data.subimages import SubImages
from utils.data.images import bicubic_downscale, crop_to_multiple
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.evaluation import restore
from utils.evaluate.metrics import psnr
from utils.evaluate.runner import Runner
from utils.measure.environment import choose_device
from utils.options import add_device, parse, positive
from utils.progress import progress
from utils.request import ModelChoice, one_entry
from utils.results.tables import aligned
from utils.zoo.registry import load_model

Variant = Callable[[np.ndarray], np.ndarray]
SMALLEST = 64  # side of a sub-image that has room for all variants [pixels]
CEILING = 100.0  # PSNR of an image without an error [dB]
VARIANTS: dict[str, Variant] = {
    "as prepared": lambda hr: hr,
    "moved by 1 and 2 pixels": lambda hr: hr[1:-3, 2:-2],
    "at 0.75 of the size": lambda hr: crop_to_multiple(cv2.resize(hr, None, None, 0.75, 0.75, cv2.INTER_AREA)),
    "negative": lambda hr: 255 - hr,
    "green, blue and red exchanged": lambda hr: hr[..., [1, 2, 0]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_dir", required=True, type=Path, metavar="DIR", help="that training.prepare made")
    parser.add_argument("--checkpoint", required=True, nargs="+", type=Path, metavar="FILE", help="weights to compare")
    parser.add_argument("--model_id", type=int, default=7, metavar="N", help="whose weights they are")
    parser.add_argument("--count", type=positive, default=200, help="sub-images, drawn at random (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    add_device(parser)
    args = parse(parser)
    device = choose_device(args.device)
    choices = [ModelChoice((args.model_id,), checkpoint=path) for path in args.checkpoint]
    runners = [Runner(load_model(one_entry(choice), device), device) for choice in choices]
    chosen = draw(SubImages(args.train_dir), args.count, args.seed)
    figures = measure(runners, chosen)
    names = [str(path) for path in args.checkpoint]
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in figures.items()]
    print(f"mean PSNR [dB] of {len(chosen)} sub-images of {args.train_dir}\n")
    print("\n".join(aligned([["variant", *names], *rows])))


def draw(subimages: SubImages, count: int, seed: int) -> list[np.ndarray]:
    """Return HR sub-images, H x W x 3 uint8, drawn at random from those that are large enough for all variants."""
    large = np.flatnonzero(subimages.shapes.min(axis=1) >= SMALLEST)
    if not len(large):
        raise HarnessError(f"{subimages.folder}: holds no sub-image of at least {SMALLEST} pixels")
    numbers = np.random.default_rng(seed).permutation(large)[:count]
    return [subimages.pair(number)[1] for number in numbers]


def measure(runners: list[Runner], images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean PSNR [dB] of each runner's model on the images, H x W x 3 uint8, by variant."""
    sums = {name: np.zeros(len(runners)) for name in VARIANTS}
    for image in progress(images, unit="sub-image", desc="measuring"):
        for name, variant in VARIANTS.items():
            hr = np.ascontiguousarray(variant(image))
            lr = bicubic_downscale(hr)
            sums[name] += [min(psnr(restore(runner, lr).sr, hr), CEILING) for runner in runners]
    return {name: total / len(images) for name, total in sums.items()}


if __name__ == "__main__":
    exit_on_harness_error(main)
