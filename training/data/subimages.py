"""The prepared training set: sub-images in flat shards, read by memory map.

A shard is a pair of raw files, `NAME.hr` and `NAME.lr`: sub-image after sub-image, each row after row, 3 bytes a
pixel. Sub-images may differ in size, so `NAME.json` lists their HR shapes; an LR sub-image starts at a 16th of the
HR one's pixel offset. The JSON file is written last: a shard that has one is complete.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import HarnessError
from utils.files import file_sha256, read_json, write_json, writing
from utils.protocol import SCALE

FORMAT = 1


class SubImages:
    """A prepared folder opened for reading.

    `shapes` N x 2 int64, HR height and width; `starts` N int64, HR pixel offset of each sub-image counted through all
    shards; `hr` and `lr`, one P x 3 uint8 memory map per shard.
    """

    def __init__(self, folder: Path | str):
        """Open the folder. Raise HarnessError if it is not a complete training set."""
        self.folder = Path(folder)
        self.shards = read_index(self.folder)["shards"]
        shapes: list[tuple[int, int]] = []
        self.hr: list[np.ndarray] = []
        self.lr: list[np.ndarray] = []
        for shard in self.shards:
            info = read_json(self.folder / f"{shard['name']}.json")
            if info is None:
                raise HarnessError(f"{self.folder}/{shard['name']}.json: is missing; run training.prepare again")
            if not info["shapes"]:  # all of its images were skipped, and an empty file cannot be mapped
                continue
            shapes += info["shapes"]
            pixels = sum(height * width for height, width in info["shapes"])
            self.hr.append(self._map(f"{shard['name']}.hr", pixels))
            self.lr.append(self._map(f"{shard['name']}.lr", pixels // SCALE**2))
        self.shapes = np.array(shapes, np.int64)
        sizes = self.shapes.prod(axis=1)
        self.starts = np.cumsum(sizes) - sizes
        self.shard_starts = np.cumsum([0] + [len(hr) for hr in self.hr])

    def _map(self, name: str, pixels: int) -> np.ndarray:
        path = self.folder / name
        try:
            values = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise HarnessError(f"{path}: cannot be read ({error}); run training.prepare again") from error
        if values.size != 3 * pixels:
            raise HarnessError(f"{path}: holds {values.size} bytes, expected {3 * pixels}; run training.prepare again")
        return values.reshape(pixels, 3)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def sha256(self) -> str:
        """The hex digest of the whole set, by those of its shards."""
        return hashlib.sha256(json.dumps([shard["sha256"] for shard in self.shards]).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all HR and LR sub-images."""
        return sum(array.nbytes for array in self.hr + self.lr)

    def shards_of(self, index: Any) -> Any:
        """Return the numbers of the shards that hold sub-images `index`, one or an array."""
        return np.searchsorted(self.shard_starts, self.starts[index], side="right") - 1

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sub-image `index` as (LR h x w x 3, HR 4h x 4w x 3), uint8 views of the memory maps."""
        height, width = self.shapes[index]
        shard = self.shards_of(index)
        start, pixels = self.starts[index] - self.shard_starts[shard], height * width
        hr = self.hr[shard][start : start + pixels].reshape(height, width, 3)
        lr = self.lr[shard][start // SCALE**2 : (start + pixels) // SCALE**2]
        return lr.reshape(height // SCALE, width // SCALE, 3), hr


def write_shard(
    stem: Path,
    made_from: dict[str, Any],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    skipped: Sequence[str] = (),
    contents: str | None = None,
    counts: Sequence[int] = (),
) -> dict[str, Any]:
    """Write a shard, `stem` with .hr, .lr and .json, unless it exists; return the contents of its JSON file.

    A folder's index is removed first: it is valid again when all its shards are.

    `made_from`: JSON values by name that describe the shard's sources and settings.
    `contents`: a digest of the sources' contents; if it has changed, the shard is written again.
    `pairs`: (LR h x w x 3, HR 4h x 4w x 3) uint8; not read if the shard exists.
    `skipped`: a line for each source left out. `counts`: sub-images of each source. Both are read after `pairs`.
    Raise HarnessError if the existing shard was made from something else, or if the shard cannot be written.
    """
    info_path = stem.with_suffix(".json")
    found = read_json(info_path)
    if found is not None:
        if any(found.get(name) != value for name, value in made_from.items()):
            raise HarnessError(f"{info_path}: made from other images or settings; choose an empty --out")
        if found.get("contents") == contents and _bytes_of(stem) == found["bytes"]:
            return found
    partial = {kind: stem.with_suffix(f".{kind}.partial") for kind in ("hr", "lr")}
    shapes = []
    with writing(stem, "choose another --out"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path in (stem.with_name("index.json"), info_path):
            path.unlink(missing_ok=True)
        with open(partial["hr"], "wb") as hr_file, open(partial["lr"], "wb") as lr_file:
            for lr, hr in pairs:
                lr_file.write(np.ascontiguousarray(lr).data)
                hr_file.write(np.ascontiguousarray(hr).data)
                shapes.append(hr.shape[:2])
        info = {
            "name": stem.name,
            **made_from,
            "contents": contents,
            "skipped": list(skipped),
            "counts": list(counts),
            "shapes": shapes,
            "bytes": sum(path.stat().st_size for path in partial.values()),
            "sha256": {kind: file_sha256(path) for kind, path in partial.items()},
        }
        for kind, path in partial.items():
            path.replace(stem.with_suffix(f".{kind}"))
    write_json(info_path, info)
    return info


def _bytes_of(stem: Path) -> int:
    """Return the size of a shard's two files, as far as they exist."""
    files = (stem.with_suffix(f".{kind}") for kind in ("hr", "lr"))
    return sum(path.stat().st_size for path in files if path.is_file())


def write_index(folder: Path, values: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a folder's index: `values`, and its shards as `write_shard` returned them. Verify the shards; return it."""
    entries = [{key: shard[key] for key in ("name", "sha256")} for shard in shards]
    index = {"format": FORMAT, **values, "shards": entries}
    write_json(folder / "index.json", index)
    verify(folder)
    return index


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a prepared folder. Raise HarnessError if there is none or it is of another format."""
    path = Path(folder) / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: no finished training set here; make one by python -m training.prepare") from error
    if index.get("format") != FORMAT:
        raise HarnessError(f"{path}: format {index.get('format')}, expected {FORMAT}; run training.prepare again")
    return index


def verify(folder: Path) -> None:
    """Check every shard against its recorded sha256. Raise HarnessError naming the first that differs."""
    folder = Path(folder)
    for shard in read_index(folder)["shards"]:
        for kind in ("hr", "lr"):
            path = folder / f"{shard['name']}.{kind}"
            if file_sha256(path) != shard["sha256"][kind]:
                raise HarnessError(f"{path}: sha256 differs from the index; delete it and run training.prepare again")
