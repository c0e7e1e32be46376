"""The prepared training set: sub-images in flat shards, read by memory map.

A shard is a pair of raw files, `NAME.hr` and `NAME.lr`: sub-image after sub-image, each row after row, 3 bytes a
pixel. Sub-images may differ in size, so `NAME.json` lists their HR shapes; an LR sub-image starts at a 16th of the
HR one's pixel offset.
"""

import json
from pathlib import Path

import numpy as np

from utils.errors import HarnessError
from utils.protocol import SCALE
from utils.zoo.checkpoints import file_sha256

FORMAT = 1


class SubImages:
    """A prepared folder opened for reading.

    `shapes` N x 2 int64, HR height and width; `starts` N int64, HR pixel offset of each sub-image counted through all
    shards; `hr` and `lr`, one P x 3 uint8 memory map per shard.
    """

    def __init__(self, folder):
        """Raises HarnessError if the folder is not a finished, complete output of `training.prepare`."""
        self.folder = Path(folder)
        self.shards = read_index(self.folder)["shards"]
        shapes = []
        self.hr, self.lr = [], []
        for shard in self.shards:
            info = json.loads((self.folder / f"{shard['name']}.json").read_text(encoding="utf-8"))
            shapes += info["shapes"]
            pixels = sum(height * width for height, width in info["shapes"])
            self.hr.append(self._map(f"{shard['name']}.hr", pixels))
            self.lr.append(self._map(f"{shard['name']}.lr", pixels // SCALE**2))
        self.shapes = np.array(shapes, np.int64)
        pixels = self.shapes.prod(axis=1)
        self.starts = np.cumsum(pixels) - pixels
        self.shard_starts = np.cumsum([0] + [len(hr) for hr in self.hr])

    def _map(self, name, pixels):
        path = self.folder / name
        try:
            values = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise HarnessError(f"{path}: cannot be read ({error}); run training.prepare again") from error
        if values.size != 3 * pixels:
            raise HarnessError(f"{path}: holds {values.size} bytes, expected {3 * pixels}; run training.prepare again")
        return values.reshape(pixels, 3)

    def __len__(self):
        return len(self.shapes)

    @property
    def nbytes(self):
        """Bytes of all HR and LR sub-images."""
        return sum(array.nbytes for array in self.hr + self.lr)

    def pair(self, index):
        """Return sub-image `index` as (LR h x w x 3, HR 4h x 4w x 3), uint8 views of the memory maps."""
        height, width = self.shapes[index]
        shard = int(np.searchsorted(self.shard_starts, self.starts[index], side="right")) - 1
        start, pixels = self.starts[index] - self.shard_starts[shard], height * width
        hr = self.hr[shard][start : start + pixels].reshape(height, width, 3)
        lr = self.lr[shard][start // SCALE**2 : (start + pixels) // SCALE**2]
        return lr.reshape(height // SCALE, width // SCALE, 3), hr


def read_index(folder):
    """Return the index of a prepared folder. Raises HarnessError if there is none or it is of another format."""
    path = Path(folder) / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: no finished training set here; make one by python -m training.prepare") from error
    if index.get("format") != FORMAT:
        raise HarnessError(f"{path}: format {index.get('format')}, expected {FORMAT}; run training.prepare again")
    return index


def verify(folder):
    """Check every shard against its recorded sha256. Raises HarnessError naming the first that differs."""
    folder = Path(folder)
    for shard in read_index(folder)["shards"]:
        for kind in ("hr", "lr"):
            path = folder / f"{shard['name']}.{kind}"
            if file_sha256(path) != shard["sha256"][kind]:
                raise HarnessError(f"{path}: sha256 differs from the index; delete it and run training.prepare again")
