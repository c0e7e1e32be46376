"""Cut photographs into sub-images for training: python -m training.prepare --hr FOLDER … --out DIR

Every image is cropped to a multiple of 4, downscaled by MATLAB's bicubic (or paired with a given LR image), and cut
into sub-images. They overlap by at least one training patch, so every patch of the image lies inside one of them. With
--smaller, images are also cut at smaller sizes; a JPEG with subsampled colours then only at half its size or less.
Each process writes one shard at a time; an interrupted run resumes where it stopped.
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from training.data.subimages import write_index, write_shard
from utils.data.images import bicubic_downscale, crop_to_multiple, read_rgb
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import held, writing
from utils.measure.environment import processors
from utils.options import command_line, parse, positive, refuse
from utils.processes import end_with_parent
from utils.progress import progress
from utils.protocol import SCALE

Image.MAX_IMAGE_PIXELS = None  # the photographs are the user's own; panoramas are large
ORIENTATION = 0x0112  # EXIF's tag, and what its values ask for
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HALF = 0.5  # of its size, at which a JPEG with subsampled colours holds them
SAME_IMAGE_GREY_LEVELS = 16  # largest mean difference of LR and downscaled HR image; other kernels give 1 or 2
Images = tuple[np.ndarray, np.ndarray]  # LR and HR
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Cut:
    """The HR side and step of the sub-images, and the smallest side of an image that is used [pixels].

    `scales` are the parts of their size at which images are cut that shall be cut at smaller sizes, too.
    """

    size: int = 480
    step: int = 352
    smallest: int = 128
    scales: tuple[float, ...] = (HALF,)


def main() -> None:
    args = _arguments()
    if any(value % SCALE or value <= 0 for value in (args.size, args.step, args.smallest)):
        raise HarnessError(f"--size, --step and --smallest must be positive multiples of {SCALE}")
    if args.step > args.size:
        raise HarnessError(f"--step {args.step}: leaves gaps between sub-images of {args.size}; choose a smaller one")
    sources = list_images(args.hr)
    if args.lr and args.smaller:
        raise HarnessError("--smaller: smaller images have none in --lr; leave one of the two out")
    if not args.smaller:
        refuse(
            ("--scales",), "is for --smaller FOLDER; name the folders whose images are to be cut at smaller sizes, too"
        )
    smaller = set(list_images(args.smaller)) if args.smaller else set()
    if others := smaller.difference(sources):
        raise HarnessError(f"--smaller {min(others).parent}: is not among --hr; name it there, too")
    lr_of = pair_with_lr(args.hr, args.lr) if args.lr else {}
    cut = Cut(args.size, args.step, args.smallest, tuple(args.scales))
    with held(args.out, "choose another --out"):
        index = prepare(sources, lr_of, args.out, cut, args.images_per_shard, args.processes, args.strict, smaller)
    for line in index["skipped"]:
        print(f"skipped: {line}", file=sys.stderr)
    if line := passed_over(args.hr):
        print(f"passed over: {line}", file=sys.stderr)
    print(f"{index['images']} images, {index['subimages']} sub-images, {index['bytes'] / 2**20:.0f} MiB in {args.out}")
    for root in args.hr if len(args.hr) > 1 else ():
        inside = [counts for folder, counts in index["folders"].items() if Path(folder).is_relative_to(root)]
        images, subimages = (sum(counts[place] for counts in inside) for place in (0, 1))
        print(f"{root}: {images} images, {subimages} sub-images")
    print(f"{len(index['skipped'])} images skipped; shards checked against their sha256")


def _arguments() -> argparse.Namespace:
    parser = command_line(
        "-m training.prepare",
        "Cut photographs into sub-images for training.",
        "--hr PHOTOS --out data/train",
        "--hr PHOTOS data/graphics --smaller PHOTOS --scales 0.75 0.5 --out data/train",
    )
    parser.add_argument("--hr", nargs="+", required=True, metavar="FOLDER", help="folders of HR images, at any depth")
    parser.add_argument("--lr", nargs="+", metavar="FOLDER", help="folders of LR images NAMEx4.png; default: bicubic")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the training set")
    parser.add_argument("--size", type=int, default=Cut.size, help="HR side of a sub-image (default %(default)s)")
    parser.add_argument("--step", type=int, default=Cut.step, help="distance between sub-images (default %(default)s)")
    parser.add_argument("--smallest", type=int, default=Cut.smallest, help="skip images with a shorter side")
    parser.add_argument("--smaller", nargs="+", metavar="FOLDER", help="folders of --hr to cut at smaller sizes, too")
    parser.add_argument(
        "--scales", nargs="+", type=part, default=Cut.scales, help="these sizes, as parts of the whole (default 0.5)"
    )
    parser.add_argument("--images_per_shard", type=positive, default=100, help="images in one file of the set")
    parser.add_argument("--processes", type=positive, default=processors(), help="default: one for each core")
    parser.add_argument("--strict", action="store_true", help="stop at an unusable image instead of skipping it")
    return parse(parser, {"--workers": "--processes", "--halves": "--smaller"})


def part(text: str) -> float:
    """Return a number above 0 and below 1; argparse makes a line of the error that is raised for another."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def list_images(folders: Iterable[Path | str]) -> list[Path]:
    """Return all images below the folders, at any depth, sorted by path within each folder.

    Raise HarnessError for a folder that is missing or holds no image.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise HarnessError(f"{folder}: no such folder; --hr takes folders of images")
        images = [path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise HarnessError(f"{folder}: holds no PNG, JPEG, WebP, AVIF, TIFF or BMP image")
        found += images
    return found


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted; hidden ones, and those in hidden folders, are left out."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def passed_over(folders: Iterable[Path | str]) -> str | None:
    """Return a line that counts the files of the folders that are not images, None if all are."""
    suffixes = [path.suffix.lower() or "no suffix" for folder in folders for path in _files(Path(folder))]
    counts = Counter(suffix for suffix in suffixes if suffix not in IMAGE_SUFFIXES)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"{counts.total()} files are not images of a kind that is taken: {kinds}" if counts else None


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph of any kind as H x W x 3 uint8 RGB.

    Files that the protocol accepts are decoded as the protocol does. In others, 16 bits are rounded to 8, and palettes,
    CMYK and grey become RGB. EXIF's rotation is applied, except to 16-bit images. Raise HarnessError if the file cannot
    be read or is partly transparent.
    """
    try:
        return _turned(read_rgb(path), path)
    except HarnessError as error:
        if path.suffix.lower() in (".jpg", ".jpeg") or not path.is_file():
            raise
        refused = error
    try:
        raw = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.dtype == np.uint16:
            eight = ((raw.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
            if eight.ndim == 2:
                return cv2.cvtColor(eight, cv2.COLOR_GRAY2RGB)
            if eight.shape[2] == 3:
                return cv2.cvtColor(eight, cv2.COLOR_BGR2RGB)
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image)
            alpha = turned.convert("RGBA").getchannel("A") if turned.has_transparency_data else None
            if alpha is not None and np.asarray(alpha).min() < 255:
                raise HarnessError(f"{path}: is partly transparent; save it as RGB without transparency")
            return np.array(turned.convert("RGB"))
    except HarnessError:
        raise
    except Exception as error:  # OpenCV and Pillow raise many kinds for a broken file
        raise refused from error


def _turned(image: np.ndarray, path: Path) -> np.ndarray:
    """Rotate or flip an image by the EXIF orientation of its file."""
    with contextlib.suppress(OSError), Image.open(path) as opened:
        turn = TURNS.get(opened.getexif().get(ORIENTATION, 0))
        if turn is not None:
            return np.array(Image.fromarray(image).transpose(turn))
    return image


def pair_with_lr(hr_folders: Sequence[Path | str], lr_folders: Sequence[Path | str]) -> dict[Path, Path]:
    """Map each HR path to its LR path, NAMEx4.png in one of the LR folders.

    If there are as many LR folders as HR folders, pair them in order. Otherwise, or if that fails, pair by name across
    all folders; each name must then be unique. Raise HarnessError if an LR image is missing or a name is not unique.
    """
    if len(hr_folders) == len(lr_folders):
        groups = [([hr], [lr]) for hr, lr in zip(hr_folders, lr_folders, strict=True)]
        with contextlib.suppress(HarnessError):
            return {hr: lr for folders in groups for hr, lr in _pairs_by_name(*folders).items()}
    return _pairs_by_name(hr_folders, lr_folders)


def _pairs_by_name(hr_folders: Sequence[Path | str], lr_folders: Sequence[Path | str]) -> dict[Path, Path]:
    names: dict[str, dict[Path, Path]] = {}
    for kind, folders in (("--hr", hr_folders), ("--lr", lr_folders)):
        names[kind] = {}
        for folder in map(Path, folders):
            for path in list_images([folder]):
                name = path.relative_to(folder).with_suffix("")  # subfolders may repeat a name
                if (twin := names[kind].setdefault(name, path)) != path:
                    raise HarnessError(
                        f"{path}: {kind} has {twin}, too, of the same name; name as many --lr folders as --hr folders, "
                        "in the same order"
                    )
    given = names["--lr"]
    lr_name_of = {name: name.with_name(f"{name.name}x{SCALE}") for name in names["--hr"]}
    missing = [names["--hr"][name] for name, lr_name in lr_name_of.items() if lr_name not in given]
    if missing:
        raise HarnessError(f"{missing[0]}: no {missing[0].stem}x{SCALE}.png in --lr ({len(missing)} missing); add it")
    return {names["--hr"][name]: given[lr_name] for name, lr_name in lr_name_of.items()}


def prepare(
    sources: list[Path],
    lr_of: dict[Path, Path],
    out: Path,
    cut: Cut,
    images_per_shard: int,
    processes: int,
    strict: bool,
    smaller: Collection[Path] = frozenset(),
) -> dict[str, Any]:
    """Write all shards and the index that is returned; finished shards of an earlier run are kept.

    `smaller`: the sources that are cut at `cut.scales`, too.
    """
    with writing(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (out / f"shard-{number:05}", sources[first : first + images_per_shard], lr_of, cut, strict, smaller)
        for number, first in enumerate(range(0, len(sources), images_per_shard))
    ]
    shards = []
    bar = progress(total=len(sources), unit="image", desc="preparing")
    try:
        with bar, _mapper(min(processes, len(jobs))) as map_jobs:
            for shard in map_jobs(_write_shard, jobs):
                shards.append(shard)
                bar.update(len(shard["sources"]))
    except BrokenProcessPool as error:
        raise HarnessError(
            f"{out}: one of {processes} processes was killed; is memory short? lower --processes"
        ) from error
    values: dict[str, Any] = {
        "cut": asdict(cut),
        "images": sum(len(shard["sources"]) - len(shard["skipped"]) for shard in shards),
        "subimages": sum(len(shard["shapes"]) for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "skipped": [line for shard in shards for line in shard["skipped"]],
        "folders": _by_folder(shards),
    }
    if not values["subimages"]:
        raise HarnessError(f"{out}: no image could be used; first: {values['skipped'][0]}")
    return write_index(out, values, shards)


def _by_folder(shards: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return {folder: [images, sub-images]} of what was used; each shard's JSON file has the counts of its files."""
    folders: dict[str, list[int]] = {}
    for shard in shards:
        for source, count in zip(shard["sources"], shard.get("counts", ()), strict=False):  # none in an older shard
            sums = folders.setdefault(str(Path(source).parent), [0, 0])
            sums[0] += count > 0
            sums[1] += count
    return folders


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` that distributes its calls over processes; a single process is this one."""
    if processes == 1:
        yield map
        return
    # An executor lets shards in progress finish; a Pool would kill its processes while they hold locks.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, end_with_parent, (os.getpid(),)) as pool:
        yield pool.map


Job = tuple[Path, list[Path], dict[Path, Path], Cut, bool, Collection[Path]]


def _write_shard(job: Job) -> dict[str, Any]:
    stem, sources, lr_of, cut, strict, smaller = job
    made_from = {
        "cut": asdict(cut) | {"scales": list(cut.scales)},  # as JSON will have it
        "sources": [str(path) for path in sources],
        "lr": [str(lr_of[path]) for path in sources if path in lr_of],
        "smaller": [str(path) for path in sources if path in smaller],
    }
    skipped: list[str] = []
    counts = [0] * len(sources)

    def pairs() -> Iterator[Images]:
        for number, source in enumerate(sources):
            try:
                images = _read_pairs(source, lr_of.get(source), cut, source in smaller)
            except HarnessError as error:
                if strict:
                    raise
                skipped.append(str(error))
                continue
            for lr, hr in images:
                for cuts in _cut(lr, hr, cut):
                    counts[number] += 1
                    yield cuts

    contents = hashlib.sha256()
    for path in (*sources, *(lr_of[path] for path in sources if path in lr_of)):
        with contextlib.suppress(OSError):  # is skipped, or costs a line, where it is read
            contents.update(path.read_bytes())
    shard = write_shard(stem, made_from, pairs(), skipped, contents.hexdigest(), counts)
    if strict and shard["skipped"]:
        raise HarnessError(shard["skipped"][0])
    return shard


def _read_pairs(source: Path, lr_path: Path | None, cut: Cut, smaller: bool) -> list[Images]:
    """Return (LR, HR) of an image, and of its smaller copies if it is to be cut `smaller`, too."""
    hr = crop_to_multiple(read_photograph(source))
    if min(hr.shape[:2]) < cut.smallest:
        raise HarnessError(f"{source}: {hr.shape[1]} x {hr.shape[0]} is smaller than --smallest {cut.smallest}")
    if lr_path is None:
        images = _with_smaller(source, hr, cut) if smaller else [hr]
        return [(bicubic_downscale(image), image) for image in images]
    lr = read_rgb(lr_path)
    if (lr.shape[0] * SCALE, lr.shape[1] * SCALE) != hr.shape[:2]:
        raise HarnessError(f"{lr_path}: is not a quarter of {source.name} ({hr.shape[1]} x {hr.shape[0]})")
    apart = float(np.abs(bicubic_downscale(hr).astype(np.float32) - lr).mean())
    if apart > SAME_IMAGE_GREY_LEVELS:
        raise HarnessError(
            f"{lr_path}: shows another image than {source} ({apart:.0f} grey levels apart on average); make it again "
            "from the HR image as it is shown, with EXIF's rotation"
        )
    return [(lr, hr)]


def _with_smaller(source: Path, image: np.ndarray, cut: Cut) -> list[np.ndarray]:
    """Return those of an image and its smaller copies that are worth cutting."""
    blurred = _has_blurred_colours(source)
    scales = [scale for scale in cut.scales if scale <= HALF or not blurred]
    copies = [copy for scale in scales if min((copy := _smaller(image, scale)).shape[:2]) >= cut.smallest]
    if not blurred:
        return [image, *copies]
    if not copies:
        raise HarnessError(
            f"{source}: holds its colours at half its size; no size in --scales is as small and still has "
            f"{cut.smallest} pixels"
        )
    return copies


def _smaller(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, int(scale * side)) for side in image.shape[:2])
    return crop_to_multiple(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)))


def _has_blurred_colours(path: Path) -> bool:
    """Return whether a file is a JPEG with subsampled chroma (4:2:0 and the like)."""
    with contextlib.suppress(OSError), Image.open(path) as image:  # a kind that OpenCV alone knows is no JPEG
        return image.format == "JPEG" and JpegImagePlugin.get_sampling(image) > 0
    return False


def _cut(lr: np.ndarray, hr: np.ndarray, cut: Cut) -> Iterator[Images]:
    """Yield an image's sub-images (LR, HR), views of it."""
    for top, left, height, width in boxes(hr.shape[0], hr.shape[1], cut):
        rows, columns = (slice(at // SCALE, (at + n) // SCALE) for at, n in ((top, height), (left, width)))
        yield lr[rows, columns], hr[top : top + height, left : left + width]


def boxes(height: int, width: int, cut: Cut) -> list[tuple[int, int, int, int]]:
    """Cover height x width by (top, left, height, width) boxes of at most `cut.size`, the last ones at the far edge."""
    rows, columns = (
        sorted({*range(0, max(side - cut.size, 0), cut.step), max(side - cut.size, 0)}) for side in (height, width)
    )
    return [(top, left, min(cut.size, height), min(cut.size, width)) for top in rows for left in columns]


if __name__ == "__main__":
    exit_on_harness_error(main)
