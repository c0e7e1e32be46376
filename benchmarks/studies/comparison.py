"""Draw a detail of a photograph side by side: python -m benchmarks.studies.comparison --out_file docs/comparison.png

Bicubic upscaling, each model of --model_id, and the original, from the same LR image, with the PSNR of the whole image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from utils.data.datasets import Pair, open_dataset, read_fitting_hr
from utils.data.sample import ensure_sample
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.metrics import psnr
from utils.measure.environment import choose_device
from utils.options import parse
from utils.protocol import SCALE
from utils.upscale import load_model, upscale
from utils.zoo.registry import find_entry, read_registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_id", type=int, nargs="+", default=[7])
    parser.add_argument("--data_dir", type=Path, help="default: the sample")
    parser.add_argument("--image", default="chelsea.png")
    parser.add_argument("--box", type=int, nargs=4, default=(72, 124, 120, 120), metavar=("TOP", "LEFT", "H", "W"))
    parser.add_argument("--out_file", type=Path, required=True)
    args = parse(parser)
    pairs = {pair.name: pair for pair in open_dataset(args.data_dir or ensure_sample()).pairs}
    if args.image not in pairs:
        raise HarnessError(f"--image {args.image}: not in the data; it holds {', '.join(pairs)}")
    draw(panels(pairs[args.image], args.model_id), args.box, args.out_file)


def panels(pair: Pair, model_ids: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    """Return (title, H x W x 3 uint8) of bicubic upscaling, the models, and the original."""
    lr = pair.read_lr()
    hr = read_fitting_hr(pair, lr)
    bicubic = cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    shown = [(f"bicubic\n{psnr(bicubic, hr):.2f} dB", bicubic)]
    for model_id in model_ids:
        entry = find_entry(model_id, read_registry())
        sr = upscale(load_model(model_id, choose_device()), lr, data_range=entry.data_range)
        shown.append((f"{entry.name}\n{psnr(sr, hr):.2f} dB", sr))
    return [*shown, ("original\n", hr)]


def draw(shown: list[tuple[str, np.ndarray]], box: Sequence[int], path: Path) -> None:
    """Write the box (top, left, height, width in HR pixels) of each panel side by side as PNG."""
    matplotlib.use("Agg")
    top, left, height, width = box
    figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.6), layout="constrained")
    for ax, (title, image) in zip(axes, shown, strict=True):
        ax.imshow(image[top : top + height, left : left + width], interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = "; ".join(" ".join(title.split()) for title, _ in shown)
    figure.savefig(path, dpi=80, metadata={"Description": titles})  # so that a test can compare it


if __name__ == "__main__":
    exit_on_harness_error(main)
