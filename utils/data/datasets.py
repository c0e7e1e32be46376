"""Data folders: image pairs in the layouts of the challenge and of public data sets, and their labels."""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.data.images import JPEG_SIGNATURE, bicubic_downscale, crop_to_multiple, image_files, read_rgb
from utils.errors import HarnessError
from utils.files import file_sha256
from utils.protocol import SCALE, SHAVE, SSIM_WINDOW

CHALLENGE_IMAGES = 200  # in DIV2K_LSDIR_valid
SMALLEST = -(-(SSIM_WINDOW + 2 * SHAVE) // SCALE)  # side of an LR image whose SR image has room for SSIM's window
# HR and LR folders below a data folder: the challenge's, plain ones, DIV2K and Flickr2K as downloaded, and the
# benchmarks that EDSR, BasicSR, LSDIR and SelfExSR are measured on.
LAYOUTS = (
    ("DIV2K_LSDIR_{split}_HR", "DIV2K_LSDIR_{split}_LR"),
    ("HR", "LR"),
    ("DIV2K_{split}_HR", "DIV2K_{split}_LR_bicubic/X4"),
    ("Flickr2K_HR", "Flickr2K_LR_bicubic/X4"),
    ("HR", "LR_bicubic/X4"),
    ("GTmod12", "LRbicx4"),
    ("HR/val", "X4/val"),
    ("image_SRF_4", "image_SRF_4"),
)
# The suffix after the part that the names of a pair share.
SUFFIX = re.compile(r"(?:[_-]?(?:x4|4x)|[_-](?:lr4?|hr|gt|srf[_-]?4|bicubic|bic))+$", re.IGNORECASE)
LR_SUFFIX = re.compile(r"(?:x4|4x|[_-]lr4?)$", re.IGNORECASE)
LABEL_FILE = "dataset.json"  # {"label": …} in a data folder names it in every table


@dataclass(frozen=True)
class Pair:
    """An image pair. `name` is the HR file's name. `hr` is None where participants have only LR images.

    `lr` is None if there is only an HR image; the LR image is then made from it.
    """

    name: str
    lr: Path | None
    hr: Path | None

    @property
    def place(self) -> Path:
        """Return the file to name in a message about the LR image."""
        return self.lr or self.hr_path

    @property
    def hr_path(self) -> Path:
        """Return the HR file of a pair that has one."""
        assert self.hr is not None, f"{self.name} has no HR image"
        return self.hr

    def read_lr(self) -> np.ndarray:
        """Read the LR image as H x W x 3 uint8, or make it as the challenge does, by MATLAB's bicubic."""
        return read_rgb(self.lr) if self.lr else bicubic_downscale(crop_to_multiple(read_rgb(self.hr_path)))


@dataclass(frozen=True)
class Dataset:
    """Image pairs in sorted order, with the label that tables show."""

    label: str
    split: str
    folder: Path
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_hr(self) -> bool:
        """Return whether all pairs have an HR image."""
        return all(pair.hr is not None for pair in self.pairs)

    @cached_property
    def sha256(self) -> str:
        """Return the hex digest of all images, whatever their folder. It is the digest of `sha256sum`'s output.

        The HR images come first, then the LR images, each in bytewise order of their names: `(cd HR; sha256sum *.png;
        cd ../LR; sha256sum *.png) | sha256sum`. Raise HarnessError for an image that cannot be read.
        """
        paths = [
            *sorted(pair.hr for pair in self.pairs if pair.hr),
            *sorted(pair.lr for pair in self.pairs if pair.lr),
        ]
        try:
            with ThreadPoolExecutor() as pool:
                digests = pool.map(file_sha256, paths)
                lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True)]
        except OSError as error:
            raise HarnessError(f"{error.filename}: cannot be read ({error.strerror}); fix or remove it") from error
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def challenge_folders(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the (HR, LR) folders of the challenge's layout below `folder`."""
    return folder / f"DIV2K_LSDIR_{split}_HR", folder / f"DIV2K_LSDIR_{split}_LR"


def open_dataset(folder: Path | str, split: str = "valid") -> Dataset:
    """List the pairs of a data folder in one of the LAYOUTS, for `split` where a layout has splits.

    The whole HR folder may be missing (LR only), or the whole LR folder (LR images are then made from the HR images).
    A single image may not be missing. Raise HarnessError for a missing folder, no images, two files of one name, or an
    image without its partner.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HarnessError(f"{folder}: no such folder; name a data folder that exists")
    layouts = [(folder / hr.format(split=split), folder / lr.format(split=split)) for hr, lr in LAYOUTS]
    with_lr = next((layout for layout in layouts if _has_images(layout[1])), None)
    with_hr = next((layout for layout in layouts if _has_images(layout[0])), None)
    if with_lr is None and with_hr is not None and with_hr[1].is_dir():
        raise HarnessError(f"{with_hr[1]}: holds no PNG image; add the LR images, or remove this folder")
    if found := with_lr or with_hr:
        hr_dir, lr_dir = found
        hr_paths: list[Path] | None
        lr_paths: list[Path] | None
        if hr_dir == lr_dir:
            hr_paths, lr_paths = _told_apart(image_files(hr_dir, [".png"]))
        else:
            hr_paths, lr_paths = (image_files(place, [".png"]) if place.is_dir() else None for place in found)
        return _dataset(folder, split, hr_paths or None, lr_paths or None, challenge=found == layouts[0])
    if _has_images(folder):
        return _dataset(folder, split, *_told_apart(image_files(folder, [".png"])), challenge=False)
    raise HarnessError(
        f"{folder}: holds no PNG images in a layout that is known here, such as DIV2K_LSDIR_{split}_HR/_LR, or HR/ and "
        "LR/; name the folders by --hr and --lr"
    )


def open_folders(hr: Path | None, lr: Path | None, split: str = "valid") -> Dataset:
    """List the pairs of an HR and an LR folder, matched by the common part of their names. One folder may be None.

    Raise HarnessError as `open_dataset` does.
    """
    paths: dict[Path, list[Path]] = {}
    for folder in filter(None, (hr, lr)):
        if not folder.is_dir():
            raise HarnessError(f"{folder}: no such folder; --hr and --lr take folders of PNG images")
        paths[folder] = image_files(folder, [".png"])
        if not paths[folder]:
            raise HarnessError(f"{folder}: holds no PNG image")
    hr_paths, lr_paths = (paths[folder] if folder else None for folder in (hr, lr))
    return _dataset(next(iter(paths)), split, hr_paths, lr_paths, challenge=False)


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and bool(image_files(folder, [".png"]))


def _told_apart(paths: list[Path]) -> tuple[list[Path], list[Path] | None]:
    """Return the (HR, LR) images of one folder. An LR name has an LR suffix; its HR name shares the rest.

    LR is None if there is no such pair.
    """
    like_lr = [path for path in paths if LR_SUFFIX.search(path.stem)]
    others = [path for path in paths if path not in like_lr]
    shared = {_base(path.stem) for path in like_lr} & {_base(path.stem) for path in others}
    return (others, like_lr) if shared else (paths, None)


def _base(stem: str) -> str:
    return SUFFIX.sub("", stem)


def _dataset(
    folder: Path, split: str, hr_paths: list[Path] | None, lr_paths: list[Path] | None, challenge: bool
) -> Dataset:
    pairs, notes = _pair(hr_paths, lr_paths), []
    label = _label(folder, split, challenge, len(pairs))
    if lr_paths is None:
        notes.append("LR images are made from the HR images, by MATLAB's bicubic")
    jpegs = sum(_is_jpeg(path) for path in hr_paths or ())
    if jpegs:
        notes.append(
            f"{jpegs} of {len(pairs)} HR images are JPEGs whatever their names say; their artefacts count as detail"
        )
    return Dataset(label, split, folder, tuple(pairs), tuple(notes))


def _is_jpeg(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(JPEG_SIGNATURE)) == JPEG_SIGNATURE
    except OSError:
        return False  # reading the image reports it


def _pair(hr_paths: list[Path] | None, lr_paths: list[Path] | None) -> list[Pair]:
    if hr_paths is None:
        return [Pair(f"{base}.png", path, None) for base, path in sorted(_by_base(lr_paths or []).items())]
    hr_of = _by_base(hr_paths)
    if lr_paths is None:
        return [Pair(path.name, None, path) for _, path in sorted(hr_of.items())]
    lr_of = _by_base(lr_paths)
    for base in sorted(hr_of.keys() - lr_of.keys()):
        raise HarnessError(f"{hr_of[base]}: has no LR image {base}x{SCALE}.png; add it or remove this one")
    for base in sorted(lr_of.keys() - hr_of.keys()):
        raise HarnessError(f"{lr_of[base]}: has no HR image {base}.png; add it or remove this one")
    return [Pair(hr_of[base].name, lr_of[base], hr_of[base]) for base in sorted(hr_of)]


def _by_base(paths: list[Path]) -> dict[str, Path]:
    """Return {shared part of a pair's names: file}. Raise HarnessError if two files have the same part."""
    found: dict[str, Path] = {}
    for path in paths:
        if (twin := found.setdefault(_base(path.stem), path)) != path:
            raise HarnessError(f"{path}: stands for the same image as {twin.name}; remove or rename one of them")
    return found


def is_challenge(label: str, split: str) -> bool:
    """Return whether a label names the challenge's complete set, to which the thresholds apply."""
    return label == f"DIV2K_LSDIR_{split} ({CHALLENGE_IMAGES} images)"


def shown(name: str) -> str:
    """Return a file's name as text that can be written anywhere, with bytes that are not UTF-8 escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _label(folder: Path, split: str, challenge: bool, count: int) -> str:
    label_path = folder / LABEL_FILE
    if label_path.is_file():
        try:
            return str(json.loads(label_path.read_text(encoding="utf-8"))["label"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HarnessError(f'{label_path}: expected {{"label": "…"}}; fix or remove it') from error
    if not challenge:
        return f"{shown(folder.resolve().name)} ({count} images)"
    complete = "" if count == CHALLENGE_IMAGES else f" of the challenge's {CHALLENGE_IMAGES}"
    return f"DIV2K_LSDIR_{split} ({count}{complete} images)"


def read_fitting_hr(pair: Pair, lr: np.ndarray) -> np.ndarray:
    """Read a pair's HR image, cropped to a multiple of 4.

    Raise HarnessError unless it is 4x as large as `lr` (H x W x 3), and both are large enough to be scored.
    """
    if min(lr.shape[:2]) < SMALLEST:
        raise HarnessError(
            f"{pair.place}: {lr.shape[1]} x {lr.shape[0]} is too small for SSIM, which takes {SMALLEST} x {SMALLEST} "
            "at least; remove the image and its HR image"
        )
    hr = crop_to_multiple(read_rgb(pair.hr_path))
    if hr.shape[:2] != (SCALE * lr.shape[0], SCALE * lr.shape[1]):
        raise HarnessError(
            f"{pair.place}: {lr.shape[1]} x {lr.shape[0]} is not a quarter of {pair.hr_path.name} "
            f"({hr.shape[1]} x {hr.shape[0]} after cropping to a multiple of {SCALE}); make it again from the HR image"
        )
    return hr
