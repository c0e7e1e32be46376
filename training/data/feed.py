"""Batches of random patches. Which patches a step sees depends on the seed and the step's number alone, so either way
of feeding, any number of workers and any restart give the same batches.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
import psutil
import torch

from utils.ahead import ahead
from utils.errors import HarnessError
from utils.measure.environment import memory_bytes, processors
from utils.protocol import SCALE

RESIDENT_SHARE = 0.5  # of the free memory that the whole set may take
FLIP_CODES = {(True, False): 0, (False, True): 1, (True, True): -1}  # OpenCV's, of rows and of columns
THREADS = min(8, processors())  # that cut patches from memory maps


@dataclass(frozen=True)
class Draw:
    """One batch's patches: sub-image numbers, LR corners [LR pixels], and the three flips that make 8 orientations."""

    index: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip_rows: np.ndarray
    flip_columns: np.ndarray
    transpose: np.ndarray  # after the flips

    def of(self, numbers):
        """The Draw of some of the patches."""
        return Draw(*(values[numbers] for values in vars(self).values()))


@dataclass(frozen=True)
class Plan:
    """What every step trains on: `draw` gives this process's share of a step's batch.

    `shapes` N x 2: HR sizes of the sub-images; `batch` counts the patches of all `world` processes together;
    `candidates` are drawn for each of them, one of which is kept.
    """

    shapes: np.ndarray
    seed: int
    batch: int
    hr_patch: int
    candidates: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.shapes.min() < self.hr_patch:
            raise HarnessError(
                f"hr_patch {self.hr_patch}: the training set holds a sub-image of side {self.shapes.min()}; "
                f"lower hr_patch or prepare again with --smallest {self.hr_patch}"
            )
        if self.batch % self.world:
            raise HarnessError(f"batch {self.batch} cannot be shared by {self.world} processes; choose a multiple")

    def draw(self, step, detail):
        """Uniform over sub-images, over positions inside each, and over the 8 orientations.

        Among candidates, each is kept with a probability in proportion to `detail(Draw)`, an integer for each patch.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        index = rng.integers(len(self.shapes), size=self.batch * self.candidates)
        room = (self.shapes[index] - self.hr_patch) // SCALE + 1
        top, left = (rng.random((len(index), 2)) * room).astype(np.int64).T
        flips = rng.integers(2, size=(3, len(index))).astype(bool)
        drawn = Draw(index, top, left, *flips).of(slice(self.rank, None, self.world))
        if self.candidates == 1:
            return drawn
        chance = rng.random(self.batch)[self.rank :: self.world]
        reached = (detail(drawn) + 1).reshape(self.candidates, -1).cumsum(axis=0)  # 1: where all are flat
        kept = (reached <= chance * reached[-1]).sum(axis=0)
        return drawn.of(kept * len(kept) + np.arange(len(kept)))


def detail(images):
    """Sum the absolute differences of neighbours in N x 3 x H x W int16 images, of NumPy or torch: N integers."""
    down, right = images[:, :, 1:] - images[:, :, :-1], images[..., 1:] - images[..., :-1]
    return abs(down).sum((1, 2, 3)) + abs(right).sum((1, 2, 3))


class ResidentFeed:
    """The whole set as uint8 in the memory of `device`; a batch is one gather there."""

    def __init__(self, subimages, plan, device):
        self.subimages, self.plan, self.device = subimages, plan, torch.device(device)
        self.hr = self._load(subimages.hr)
        self.lr = self._load(subimages.lr)

    def _load(self, shards):
        flat = torch.empty((sum(map(len, shards)), 3), dtype=torch.uint8, device=self.device)
        start = 0
        for shard in shards:
            flat[start : start + len(shard)] = torch.from_numpy(np.array(shard))
            start += len(shard)
        return flat

    def batches(self, start, stop):
        """Yield (LR B x 3 x p/4 x p/4, HR B x 3 x p x p) uint8, channels last in memory, for steps start … stop - 1."""
        if self.device.type != "cuda":
            yield from map(self._batch, range(start, stop))
            return
        # On a stream of its own: the choice among candidates is waited for, and on the training's one would be waited
        # for until the step before is over.
        stream, training = torch.cuda.Stream(self.device, priority=-1), torch.cuda.current_stream(self.device)
        stream.wait_stream(training)  # which loaded the set
        for step in range(start, stop):
            with torch.cuda.stream(stream):
                batch = self._batch(step)
            training.wait_stream(stream)
            for tensor in batch:
                tensor.record_stream(training)  # or its memory would be given anew while a step reads it
            yield batch

    def _batch(self, step):
        patches = self.plan.draw(step, lambda drawn: detail(self._gather(self.lr, drawn, SCALE).short()).cpu().numpy())
        return self._gather(self.lr, patches, SCALE), self._gather(self.hr, patches, 1)

    def _gather(self, flat, patches, shrink):
        scale, side = SCALE // shrink, self.plan.hr_patch // shrink
        width = self.subimages.shapes[patches.index, 1] // shrink
        corner = self.subimages.starts[patches.index] // shrink**2 + scale * (patches.top * width + patches.left)
        # A flip walks the patch backwards from its far edge; a transposition swaps the two strides.
        first = corner + (side - 1) * (patches.flip_rows * width + patches.flip_columns)
        row, column = np.where(patches.flip_rows, -width, width), np.where(patches.flip_columns, -1, 1)
        down, right = np.where(patches.transpose, (column, row), (row, column))
        walk = torch.from_numpy(np.stack([first, down, right])).to(self.device, non_blocking=True)
        first, down, right = walk[:, :, None, None]
        steps = torch.arange(side, device=self.device)
        pixels = first + down * steps[:, None] + right * steps  # B x side x side
        return flat[pixels].permute(0, 3, 1, 2)


class MappedFeed:
    """The set stays in its memory maps; threads cut the patches, pinned memory carries them to `device`.

    Threads, not processes: they copy without Python's lock, and there is no memory to be shared, of which containers
    often have little.
    """

    def __init__(self, subimages, plan, device, workers):
        self.subimages, self.plan, self.device, self.workers = subimages, plan, torch.device(device), workers

    def batches(self, start, stop):
        """Yield the same batches as `ResidentFeed.batches`."""
        with ThreadPoolExecutor(self.workers) if self.workers else nullcontext() as pool:
            for batch in ahead(pool, self._batch, range(start, stop), 2 * self.workers):
                yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def _batch(self, step):
        patches = self.plan.draw(step, lambda drawn: detail(self._cut(drawn, 0).numpy().astype(np.int16)))
        batch = self._cut(patches, 0), self._cut(patches, 1)
        if self.device.type != "cuda":
            return batch
        with torch.cuda.device(self.device):  # every thread begins with the first GPU
            return [tensor.pin_memory() for tensor in batch]

    def _cut(self, patches, number):
        """The patches from the sub-images of LR (`number` 0) or HR (1)."""
        scale = (1, SCALE)[number]
        side = self.plan.hr_patch // SCALE * scale
        cut = np.empty((len(patches.index), side, side, 3), np.uint8)
        for place, index, top, left, *flips, transpose in zip(cut, *vars(patches).values(), strict=True):
            image = self.subimages.pair(index)[number][top * scale :, left * scale :]
            patch = image[:side, :side]
            if any(flips):
                patch = cv2.flip(patch, FLIP_CODES[*flips])  # several times as fast as by strides
            place[:] = cv2.transpose(patch) if transpose else patch
        return torch.from_numpy(cut).permute(0, 3, 1, 2)


def make_feed(subimages, plan, device, workers, kind="auto"):
    """Return the feed of `kind`, "resident" or "mapped"; "auto" keeps the set on the device if it fits there well."""
    if kind == "auto":
        kind = "resident" if subimages.nbytes <= RESIDENT_SHARE * _free_bytes(device) else "mapped"
    if kind == "resident":
        return ResidentFeed(subimages, plan, device)
    return MappedFeed(subimages, plan, device, workers)


def _free_bytes(device):
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, memory_bytes())
