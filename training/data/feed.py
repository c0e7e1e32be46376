"""Batches of random patches.

The patches of a step depend only on the seed and the step's number. So both feeds, any number of threads and any
restart give the same batches.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from training.data.subimages import SubImages
from utils.ahead import ahead
from utils.data.images import bicubic_weights
from utils.errors import HarnessError
from utils.measure.environment import memory_bytes, processors
from utils.protocol import SCALE

RESIDENT_SHARE = 0.5  # of the free memory that the whole set may take
THREADS = min(8, processors())  # that cut patches from memory maps
MARGIN = 6  # HR pixels around a patch that its LR patch is made from
MOVES = (-2, 2)  # HR pixels that a patch is moved by: from the first to below the second
BORDER = (MARGIN - MOVES[0]) // SCALE  # LR pixels that a moved patch keeps from the edge of its sub-image
SWAPS = np.array(list(itertools.permutations(range(3))))  # of red, green and blue; the first is none
Batch = tuple[Tensor, Tensor]  # LR and HR
Item = TypeVar("Item")


@dataclass(frozen=True)
class Patches:
    """One batch's patches: sub-image numbers, LR corners [LR pixels], and the three flips that make 8 orientations.

    `down` and `right` move the HR patch away from the LR corner [HR pixels]; a `negative` has 255 - x for each value x;
    `swap` is the number of a permutation of the colours.
    """

    index: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip_rows: np.ndarray
    flip_columns: np.ndarray
    transpose: np.ndarray  # after the flips
    down: np.ndarray
    right: np.ndarray
    negative: np.ndarray
    swap: np.ndarray

    def of(self, numbers: slice | np.ndarray) -> "Patches":
        """Return some of the patches."""
        return Patches(*(getattr(self, field.name)[numbers] for field in fields(self)))


@dataclass(frozen=True)
class PatchSampler:
    """A source of training batches: `sample` gives this process's share of a step's batch.

    `shapes` N x 2 are the HR sizes of the sub-images. `batch` counts the patches of all `world` processes together. For
    each patch, `candidates` are drawn and one of them is kept. With `shifts`, HR patches begin at any pixel, and their
    LR patches must be made; without, at multiples of 4, and LR patches are the prepared ones. `negatives` and
    `colour_swaps` are the shares of patches that are negatives, and whose colours are permuted.
    """

    shapes: np.ndarray
    seed: int
    batch: int
    hr_patch: int
    candidates: int = 1
    rank: int = 0
    world: int = 1
    shifts: bool = False
    negatives: float = 0.0
    colour_swaps: float = 0.0

    def __post_init__(self) -> None:
        if self.shapes.min() < (least := self.hr_patch + 2 * self.border * SCALE):
            raise HarnessError(
                f"hr_patch {self.hr_patch}{' with shifts' if self.shifts else ''}: the training set holds a sub-image "
                f"of side {self.shapes.min()}; lower hr_patch, or prepare again with --smallest {least} and at least "
                "that as --size, into another --out"
            )
        if self.batch % self.world:
            raise HarnessError(f"batch {self.batch} cannot be shared by {self.world} processes; choose a multiple")

    @property
    def border(self) -> int:
        """LR pixels at a sub-image's edges where no patch begins or ends."""
        return BORDER if self.shifts else 0

    def sample(self, step: int, detail: Callable[[Patches], np.ndarray]) -> Patches:
        """Return this process's patches of a step: uniform over sub-images, positions inside each, and 8 orientations.

        Among candidates, each is kept with a probability in proportion to `detail(Patches)`, an integer for each patch.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        index = rng.integers(len(self.shapes), size=self.batch * self.candidates)
        room = (self.shapes[index] - self.hr_patch) // SCALE + 1 - 2 * self.border
        top, left = (rng.random((len(index), 2)) * room).astype(np.int64).T + self.border
        flips = rng.integers(2, size=(3, len(index))).astype(bool)
        moves = rng.integers(*MOVES, size=(2, len(index))) if self.shifts else np.zeros((2, len(index)), np.int64)
        colours = np.zeros((2, len(index)), np.int64)
        if self.negatives:
            colours[0] = rng.random(len(index)) < self.negatives
        if self.colour_swaps:
            colours[1] = rng.integers(len(SWAPS), size=len(index)) * (rng.random(len(index)) < self.colour_swaps)
        drawn = Patches(index, top, left, *flips, *moves, *colours).of(slice(self.rank, None, self.world))
        if self.candidates == 1:
            return drawn
        chance = rng.random(self.batch)[self.rank :: self.world]
        reached = (detail(drawn) + 1).reshape(self.candidates, -1).cumsum(axis=0)  # 1: where all are flat
        kept = (reached <= chance * reached[-1]).sum(axis=0)
        return drawn.of(kept * len(kept) + np.arange(len(kept)))


def detail(images: Tensor) -> Tensor:
    """Sum the absolute differences of neighbours in N x 3 x H x W int16 images; return N integers."""
    down, right = images[:, :, 1:] - images[:, :, :-1], images[..., 1:] - images[..., :-1]
    return abs(down).sum((1, 2, 3)) + abs(right).sum((1, 2, 3))


class Feed(Protocol):
    """Gives the batches of steps."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield (LR B x 3 x p/4 x p/4, HR B x 3 x p x p) uint8, channels last in memory, for steps start … stop - 1."""
        ...


class ResidentFeed:
    """The whole set as uint8 in the memory of `device`; a batch is one gather there."""

    def __init__(self, subimages: SubImages, sampler: PatchSampler, device: torch.device | str):
        self.subimages, self.sampler, self.device = subimages, sampler, torch.device(device)
        self.hr = self._load(subimages.hr)
        self.lr = self._load(subimages.lr)

    def _load(self, shards: list[np.ndarray]) -> Tensor:
        flat = torch.empty((sum(map(len, shards)), 3), dtype=torch.uint8, device=self.device)
        start = 0
        for shard in shards:
            flat[start : start + len(shard)] = torch.from_numpy(np.array(shard))
            start += len(shard)
        return flat

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield (LR B x 3 x p/4 x p/4, HR B x 3 x p x p) uint8, channels last in memory, for steps start … stop - 1."""
        return loaded(self._batch, range(start, stop), self.device)

    def _batch(self, step: int) -> Batch:
        patches = self.sampler.sample(
            step, lambda drawn: detail(self._gather(self.lr, drawn, SCALE).short()).cpu().numpy()
        )
        if self.sampler.shifts:
            return finished([self._gather(self.hr, patches, 1, MARGIN)], patches)
        return finished([self._gather(self.lr, patches, SCALE), self._gather(self.hr, patches, 1)], patches)

    def _gather(self, flat: Tensor, patches: Patches, shrink: int, margin: int = 0) -> Tensor:
        side = self.sampler.hr_patch // shrink + 2 * margin
        return gather(flat, *corners(self.subimages, patches, shrink, margin), patches, side)


class MappedFeed:
    """The set stays memory-mapped; threads copy patches from it, and pinned memory carries them to `device`.

    Unlike processes, threads need no shared memory, which is often scarce in containers. They take the GIL a few times
    per batch rather than per patch; otherwise they would constantly wait for each other.
    """

    def __init__(self, subimages: SubImages, sampler: PatchSampler, device: torch.device | str, workers: int):
        self.subimages, self.sampler, self.device, self.workers = subimages, sampler, torch.device(device), workers
        with warnings.catch_warnings(action="ignore"):  # the maps are read-only, and nothing writes to them
            self.hr, self.lr = ([torch.from_numpy(shard) for shard in kind] for kind in (subimages.hr, subimages.lr))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the same batches as `ResidentFeed.batches`."""
        with self._pool() as pool:
            cuts = ahead(pool, self._cut, range(start, stop), 2 * self.workers)
            yield from loaded(self._load, cuts, self.device)

    def _pool(self) -> AbstractContextManager[Executor | None]:
        if not self.workers:
            return nullcontext()
        # Each of them limits torch to one thread; otherwise there would be more threads than cores. This thread asks
        # for its own number first: a thread that has not asked yet gets the last number that any thread has set.
        torch.get_num_threads()
        return ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,))

    def _cut(self, step: int) -> tuple[Patches, list[Tensor]]:
        """Return a step's patches and their LR and HR pixels, B x side x side x 3, not yet flipped or transposed.

        With shifts, there are HR pixels only, with a margin.
        """
        patches = self.sampler.sample(step, self._detail)
        if self.sampler.shifts:
            return patches, [self._copy(patches, 1, MARGIN)]
        return patches, [self._copy(patches, SCALE), self._copy(patches, 1)]

    def _detail(self, patches: Patches) -> np.ndarray:
        return detail(self._copy(patches, SCALE).permute(0, 3, 1, 2).short()).numpy()  # the same in all orientations

    def _copy(self, patches: Patches, shrink: int, margin: int = 0) -> Tensor:
        side = self.sampler.hr_patch // shrink + 2 * margin
        firsts, widths = corners(self.subimages, patches, shrink, margin)
        shards = self.subimages.shards_of(patches.index)
        firsts -= self.subimages.shard_starts[shards] // shrink**2
        maps = self.hr if shrink == 1 else self.lr
        places = zip(shards.tolist(), (3 * firsts).tolist(), (3 * widths).tolist(), strict=True)
        views = [maps[shard].as_strided((side, side, 3), (row, 3, 1), first) for shard, first, row in places]
        on_gpu = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_gpu else nullcontext():  # every thread begins with the first GPU
            copy = torch.empty((len(views), side, side, 3), dtype=torch.uint8, pin_memory=on_gpu)
        return torch.stack(views, out=copy)

    def _load(self, cut: tuple[Patches, list[Tensor]]) -> Batch:
        patches, pixels = cut
        return finished(
            [self._turned(values.to(self.device, non_blocking=True), patches) for values in pixels], patches
        )

    def _turned(self, cut: Tensor, patches: Patches) -> Tensor:
        count, side = cut.shape[:2]
        return gather(cut.view(-1, 3), np.arange(count) * side**2, np.full(count, side), patches, side)


def loaded(load: Callable[[Item], Batch], items: Iterable[Item], device: torch.device) -> Iterator[Batch]:
    """Yield `load(item)`, a tuple of tensors on `device`; a GPU loads while it computes on the previous batch."""
    if device.type != "cuda":
        yield from map(load, items)
        return
    # On a separate stream: otherwise, a synchronization in `load` would wait until the previous step has ended.
    stream, training = torch.cuda.Stream(device, priority=-1), torch.cuda.current_stream(device)
    stream.wait_stream(training)  # which may have loaded the set
    for item in items:
        with torch.cuda.stream(stream):
            batch = load(item)
        training.wait_stream(stream)
        for tensor in batch:
            tensor.record_stream(training)  # or its memory would be reused while a step reads it
        yield batch


def corners(subimages: SubImages, patches: Patches, shrink: int, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the patches' upper left pixels, numbered across all sub-images, and the widths of their sub-images.

    `shrink` is 1 for HR and SCALE for LR, `margin` what is added around each patch [pixels].
    """
    widths = subimages.shapes[patches.index, 1] // shrink
    moves = (patches.down, patches.right) if shrink == 1 else (0, 0)
    top, left = (
        SCALE // shrink * corner + move - margin
        for corner, move in zip((patches.top, patches.left), moves, strict=True)
    )
    return subimages.starts[patches.index] // shrink**2 + top * widths + left, widths


def made_pair(windows: Tensor) -> Batch:
    """Return LR and HR patches from HR patches with their margin, B x 3 x (p + 2 MARGIN) x (p + 2 MARGIN) uint8.

    LR patches are what `utils.data.images.bicubic_downscale` makes of the whole image there, bit for bit.
    """
    rows = shrunk_rows(windows.permute(0, 2, 3, 1))
    lr = shrunk_rows(rows.transpose(1, 2)).transpose(1, 2).permute(0, 3, 1, 2)
    hr = windows[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return lr.contiguous(memory_format=torch.channels_last), hr


def shrunk_rows(images: Tensor) -> Tensor:
    """Shrink B x H x W x 3 uint8 images along H by SCALE, without what lies less than MARGIN pixels from the edges."""
    weights = torch.from_numpy(bicubic_weights(SCALE))
    height = images.shape[1]
    count = (height - len(weights)) // SCALE + 1
    kernel = torch.zeros(count, height)
    kernel.as_strided((count, len(weights)), (height + SCALE, 1)).copy_(weights)  # each row SCALE further on
    values = kernel.to(images.device, non_blocking=True) @ images.float().flatten(2)
    return values.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8).unflatten(2, images.shape[2:])


def gather(flat: Tensor, first: np.ndarray, width: np.ndarray, patches: Patches, side: int) -> Tensor:
    """Return patches in their orientation, B x 3 x side x side, channels last, from `flat` P x 3 on any device.

    `first` B, their upper left pixels; `width` B, pixels from one row to the next.
    """
    # A flip walks the patch backwards from its far edge; a transposition swaps the two strides.
    first = first + (side - 1) * (patches.flip_rows * width + patches.flip_columns)
    row, column = np.where(patches.flip_rows, -width, width), np.where(patches.flip_columns, -1, 1)
    down, right = np.where(patches.transpose, (column, row), (row, column))
    walk = torch.from_numpy(np.stack([first, down, right])).to(flat.device, non_blocking=True)
    first, down, right = walk[:, :, None, None]
    steps = torch.arange(side, device=flat.device)
    pixels = first + down * steps[:, None] + right * steps  # B x side x side
    return flat.index_select(0, pixels.flatten()).view(*pixels.shape, -1).permute(0, 3, 1, 2)


def finished(pixels: list[Tensor], patches: Patches) -> Batch:
    """Return LR and HR patches from both, or from HR patches with their margin, in the colours that they are to have.

    The bicubic kernel's weights have a sum of 1, so the LR image of a negative is the negative of the LR image.
    """
    lr, hr = pixels if len(pixels) == 2 else made_pair(pixels[0])
    if patches.negative.any():
        bits = torch.from_numpy((255 * patches.negative).astype(np.uint8)).to(lr.device, non_blocking=True)
        lr, hr = (images ^ bits[:, None, None, None] for images in (lr, hr))
    if patches.swap.any():
        channels = torch.from_numpy(SWAPS[patches.swap]).to(lr.device, non_blocking=True)[..., None, None]
        lr, hr = (
            images.gather(1, channels.expand_as(images)).contiguous(memory_format=torch.channels_last)
            for images in (lr, hr)
        )
    return lr, hr


def make_feed(
    subimages: SubImages, sampler: PatchSampler, device: torch.device, workers: int, kind: str = "auto"
) -> Feed:
    """Return the feed of `kind`, "resident" or "mapped"; "auto" keeps the set on the device if it fits there well."""
    if kind == "auto":
        kind = "resident" if subimages.nbytes <= RESIDENT_SHARE * _free_bytes(device) else "mapped"
    if kind == "resident":
        return ResidentFeed(subimages, sampler, device)
    return MappedFeed(subimages, sampler, device, workers)


def _free_bytes(device: torch.device) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, memory_bytes())
