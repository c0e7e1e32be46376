"""Make a small copy of a training set, to upload to a rented GPU: python -m training.data.compress --out FOLDER …

The copy is a folder of AVIF images (4:4:4), for training.prepare to cut there. Sub-images are drawn at random, one with
twice the detail per pixel twice as likely, until the copy has the size that was asked for.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.data.feed import detail
from training.data.subimages import SubImages
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import replacing, writing
from utils.options import amount, command_line, natural, parse
from utils.progress import progress

QUALITY = 85
SPEED = 8  # of the AVIF encoder; at 6 it takes three times as long for files of the same size
LARGE_ENOUGH = 0.99  # of the size asked for: then no more sub-images are tried


def main() -> None:
    parser = command_line(
        "-m training.data.compress",
        "Make a small copy of a training set, to upload to a rented GPU.",
        "--train_dir data/train --out data/small --megabytes 60",
        "--train_dir data/train --out data/small --megabytes 500 --quality 95",
    )
    parser.add_argument(
        "--train_dir", required=True, type=Path, metavar="DIR", help="folder that training.prepare wrote"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder of the AVIF images")
    parser.add_argument("--megabytes", required=True, type=amount, help="size of all images together, 10^6 bytes each")
    parser.add_argument("--quality", type=natural, default=QUALITY, help="of AVIF, up to 100 (default %(default)s)")
    parser.add_argument("--seed", type=natural, default=2026, help="another seed chooses other sub-images")
    args = parse(parser)
    if args.quality > 100:
        raise HarnessError(f"--quality {args.quality}: AVIF takes 0 to 100")
    with writing(args.out, "choose another --out"):
        args.out.mkdir(parents=True, exist_ok=True)
        if any(args.out.iterdir()):
            raise HarnessError(f"{args.out}: is not empty; choose another --out")
    subimages = SubImages(args.train_dir)
    left = limit = int(args.megabytes * 1e6)
    count = pixels = 0
    with progress(total=limit, unit="B", unit_scale=True, desc="compressing") as bar:
        for index in in_random_order(subimages, args.seed):
            _, hr = subimages.pair(index)
            coded = avif(hr, args.quality)
            if len(coded) <= left:
                with replacing(args.out / f"subimage_{index:06}.avif") as file:
                    file.write_bytes(coded)
                left, count, pixels = left - len(coded), count + 1, pixels + hr.shape[0] * hr.shape[1]
                bar.update(len(coded))
            if left < (1 - LARGE_ENOUGH) * limit:
                break
    if not count:
        raise HarnessError(f"--megabytes {args.megabytes:g}: too few for one sub-image; give more")
    print(
        f"{count} of {len(subimages)} sub-images, {pixels / 1e6:.1f} megapixels, {(limit - left) / 1e6:.1f} MB "
        f"in {args.out}"
    )


def in_random_order(subimages: SubImages, seed: int) -> Iterator[int]:
    """Yield the numbers of all sub-images once; the chance to come next grows in proportion to detail per pixel.

    Source of drawing so without replacement: Efraimidis and Spirakis, Information Processing Letters, 2006.
    """
    weights = np.array([_detail_per_pixel(subimages.pair(index)[0]) for index in range(len(subimages))])
    waits = np.random.default_rng(seed).exponential(size=len(weights)) / weights
    yield from np.argsort(waits).tolist()


def _detail_per_pixel(image: np.ndarray) -> float:
    """Return the detail of an h x w x 3 uint8 image per pixel; a flat image has a little, too."""
    channels_first = torch.from_numpy(image.astype(np.int16)).permute(2, 0, 1)[None]
    return (detail(channels_first).item() + 1) / image[..., 0].size


def avif(image: np.ndarray, quality: int) -> bytes:
    """Return an H x W x 3 uint8 RGB image as an AVIF file, its colours at full size."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "AVIF", quality=quality, subsampling="4:4:4", speed=SPEED)
    return file.getvalue()


if __name__ == "__main__":
    exit_on_harness_error(main)
