"""Upscale photographs by 4: python -m utils.upscale PHOTO … [--out DIR] [--model_id N | --model_file FILE]

from utils.upscale import load_model, read_photograph, upscale, write_png

write_png("photo_x4.png", upscale(load_model(7), read_photograph("photo.jpg")))
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.data.images import to_image, to_tensor, write_png
from utils.errors import HarnessError, exit_on_harness_error
from utils.measure.environment import choose_device
from utils.measure.tiles import forward_in_tiles
from utils.options import add_device, add_model, command_line, parse, positive
from utils.progress import progress
from utils.request import ModelChoice, one_entry
from utils.zoo.registry import find_entry, read_registry
from utils.zoo.registry import load_model as load_entry

UNCHANGED = cv2.IMREAD_UNCHANGED
TILE = 512  # LR side [pixels]; a network needs at most some GB for such a tile

__all__ = ["load_model", "read_photograph", "upscale", "write_png"]


def main() -> None:
    parser = command_line(
        "-m utils.upscale",
        "Upscale photographs by 4.",
        "photo.jpg --out big",
        "*.png --out big --model_id 126 --device cpu",
    )
    parser.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="JPEG, PNG, WebP, AVIF, TIFF or BMP files"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where PHOTO_x4.png goes (default: here)"
    )
    parser.add_argument("--tile", type=positive, default=TILE, help="LR side of the tiles of a large image")
    add_model(parser)
    add_device(parser)
    args = parse(parser)
    default = () if args.model_file else (7,)
    ids = default if args.model_id is None else (args.model_id,)
    entry = one_entry(ModelChoice(ids, args.model_file, args.checkpoint))
    targets = target_files(args.photos, args.out)
    loaded = load_entry(entry, choose_device(args.device))
    if loaded.weights.missing_weights:
        raise HarnessError(f"--model_id {entry.id}: {loaded.weights.missing_weights}; name weights by --checkpoint")
    for photo, target in progress(list(zip(args.photos, targets, strict=True)), desc=entry.name, unit="photo"):
        image = read_photograph(photo)
        write_png(target, upscale(loaded.model, image, args.tile, entry.data_range))
        height, width = image.shape[:2]
        tqdm.write(f"{target}: {4 * width} x {4 * height}, from {width} x {height}")


def target_files(photos: list[Path], folder: Path) -> list[Path]:
    """Return where each upscaled photograph goes. Raise HarnessError if two would go to one file."""
    targets: dict[Path, Path] = {}
    for photo in photos:
        target = folder / f"{photo.stem}_x4.png"
        if target in targets:
            raise HarnessError(f"{photo}: {targets[target]} would be written to the same {target}; rename one")
        targets[target] = photo
    return list(targets)


def load_model(model_id: int, device: torch.device | str = "cpu") -> nn.Module:
    """Return a network of the registry with its weights, ready to run on a device."""
    return load_entry(find_entry(model_id, read_registry()), device).model


def read_photograph(path: Path | str) -> np.ndarray:
    """Read an image file as H x W x 3 uint8 RGB.

    Rotate it as its EXIF data says, round 16 bits to 8, repeat grey three times, and drop transparency. Rounding and
    dropped transparency are reported on the terminal. Raise HarnessError if it is not an image.
    """
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    image, whole = (cv2.imdecode(data, how) if data.size else None for how in (cv2.IMREAD_COLOR_RGB, UNCHANGED))
    if image is None or whole is None:
        raise HarnessError(f"{path}: not a readable image; convert it to PNG or JPEG")
    if whole.ndim == 3 and whole.shape[2] == 4 and whole[..., 3].min() < (255 if whole.dtype == np.uint8 else 65535):
        tqdm.write(f"{path}: its transparency is left out")
    if whole.dtype != np.uint8:
        tqdm.write(f"{path}: {8 * whole.itemsize} bits are rounded to 8")
    return image.astype(np.uint8, copy=False)


@torch.no_grad()
def upscale(model: nn.Module, image: np.ndarray, tile: int = TILE, data_range: float = 1.0) -> np.ndarray:
    """Upscale H x W x 3 uint8 RGB to 4H x 4W x 3 uint8, in overlapping tiles if the image is larger than a tile."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    lr = to_tensor(image, data_range).to(device)
    output = forward_in_tiles(model, lr, tile).output if max(image.shape) > tile else model(lr)
    return to_image(output, data_range)


if __name__ == "__main__":
    exit_on_harness_error(main)
