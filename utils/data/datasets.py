"""Data folders: image pairs in the challenge's layout or as plain HR/ and LR/, and their labels."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils.data.images import crop_to_multiple, image_files, read_rgb
from utils.errors import HarnessError
from utils.files import file_sha256
from utils.protocol import SCALE, SHAVE, SSIM_WINDOW

SPLITS = ("valid", "test")
CHALLENGE_IMAGES = 200  # in DIV2K_LSDIR_valid
SMALLEST = -(-(SSIM_WINDOW + 2 * SHAVE) // SCALE)  # side of an LR image whose SR image has room for SSIM's window
LABEL_FILE = "dataset.json"  # {"label": …} in a data folder names it in every table


@dataclass(frozen=True)
class Pair:
    """One image: `name` is the HR file's name; `hr` is None where participants have LR only."""

    name: str
    lr: Path
    hr: Path | None


@dataclass(frozen=True)
class Dataset:
    """Image pairs in sorted order, with the label that tables show."""

    label: str
    split: str
    folder: Path
    pairs: tuple[Pair, ...]

    @property
    def has_hr(self):
        return all(pair.hr is not None for pair in self.pairs)

    @cached_property
    def sha256(self):
        """Hex digest of all images, the same wherever they lie: that of what `sha256sum` prints of them.

        In bytewise order of their names, first the HR images', then the LR ones': `(cd HR; sha256sum *.png; cd ../LR;
        sha256sum *.png) | sha256sum`. Raises HarnessError for an image that cannot be read.
        """
        paths = [*sorted(pair.hr for pair in self.pairs if pair.hr), *sorted(pair.lr for pair in self.pairs)]
        try:
            with ThreadPoolExecutor() as pool:
                digests = pool.map(file_sha256, paths)
                lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True)]
        except OSError as error:
            raise HarnessError(f"{error.filename}: cannot be read ({error.strerror}); mend or remove it") from error
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def challenge_folders(folder, split):
    """Return the (HR, LR) folders of the challenge's layout below `folder`."""
    return folder / f"DIV2K_LSDIR_{split}_HR", folder / f"DIV2K_LSDIR_{split}_LR"


def open_dataset(folder, split="valid"):
    """List the pairs of a data folder: the challenge's layout for `split`, else `HR/` and `LR/` (any split).

    The HR folder may be absent as a whole (LR only), a single HR or LR image may not. Raises HarnessError for a
    missing folder, no images, two files of one name, or an image without its partner.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HarnessError(f"{folder}: no such folder; name a data folder that exists")
    hr_dir, lr_dir = challenge_folders(folder, split)
    challenge = lr_dir.is_dir() or hr_dir.is_dir()
    if not challenge:
        hr_dir, lr_dir = folder / "HR", folder / "LR"
    if not lr_dir.is_dir():
        raise HarnessError(f"{lr_dir}: no such folder; a data folder holds DIV2K_LSDIR_{split}_HR/_LR or HR/ and LR/")
    lr_paths = image_files(lr_dir, [".png"])
    if not lr_paths:
        raise HarnessError(f"{lr_dir}: holds no PNG image; LR images are named NAMEx{SCALE}.png")
    pairs = _pair(lr_paths, hr_dir)
    return Dataset(_label(folder, split, challenge, len(pairs)), split, folder, tuple(pairs))


def _pair(lr_paths, hr_dir):
    suffix = f"x{SCALE}"
    for path in lr_paths:
        if not path.stem.endswith(suffix):
            raise HarnessError(f"{path}: LR images are named NAME{suffix}.png; rename or remove it")
    lr_of = {stem.removesuffix(suffix): path for stem, path in _by_stem(lr_paths).items()}
    if not hr_dir.is_dir():
        return [Pair(f"{stem}.png", path, None) for stem, path in lr_of.items()]
    hr_of = _by_stem(image_files(hr_dir, [".png"]))
    for stem in sorted(hr_of.keys() - lr_of.keys()):
        other = f"; {lr_of[stem + '_'].name} lies there: rename it" if f"{stem}_" in lr_of else ""
        raise HarnessError(f"{hr_of[stem]}: has no LR image {stem}{suffix}.png{other or '; add it or remove this one'}")
    for stem in sorted(lr_of.keys() - hr_of.keys()):
        raise HarnessError(f"{lr_of[stem]}: has no HR image {stem}.png; add it or remove this one")
    return [Pair(hr_of[stem].name, lr_of[stem], hr_of[stem]) for stem in sorted(hr_of)]


def _by_stem(paths):
    found = {}
    for path in paths:
        if (twin := found.setdefault(path.stem, path)) != path:
            raise HarnessError(f"{path}: which is the image, this or {twin.name}? remove one of them")
    return found


def is_challenge(label: str, split: str) -> bool:
    """Return whether a dataset's label says that it is the challenge's whole set, for which the thresholds hold."""
    return label == f"DIV2K_LSDIR_{split} ({CHALLENGE_IMAGES} images)"


def shown(name: str) -> str:
    """Return a file's name as text that can be written anywhere: bytes that are not UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _label(folder, split, challenge, count):
    label_path = folder / LABEL_FILE
    if label_path.is_file():
        try:
            return str(json.loads(label_path.read_text(encoding="utf-8"))["label"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HarnessError(f'{label_path}: expected {{"label": "…"}}; mend or remove it') from error
    if not challenge:
        return f"{shown(folder.resolve().name)} ({count} images)"
    complete = "" if count == CHALLENGE_IMAGES else f" of the challenge's {CHALLENGE_IMAGES}"
    return f"DIV2K_LSDIR_{split} ({count}{complete} images)"


def read_fitting_hr(pair, lr):
    """Read a pair's HR image, cropped to a multiple of 4.

    Raises HarnessError unless it is 4x as large as `lr` (H x W x 3), and both are large enough to be judged.
    """
    if min(lr.shape[:2]) < SMALLEST:
        raise HarnessError(
            f"{pair.lr}: {lr.shape[1]} x {lr.shape[0]} is too small for SSIM, which takes {SMALLEST} x {SMALLEST} at "
            "least; remove the image and its HR image"
        )
    hr = crop_to_multiple(read_rgb(pair.hr))
    if hr.shape[:2] != (SCALE * lr.shape[0], SCALE * lr.shape[1]):
        raise HarnessError(
            f"{pair.lr}: {lr.shape[1]} x {lr.shape[0]} is not a quarter of {pair.hr.name} "
            f"({hr.shape[1]} x {hr.shape[0]} after cropping to a multiple of {SCALE}); make it again from the HR image"
        )
    return hr
