"""One evaluation by several processes, started by torchrun: each takes every `size`-th image, the first one merges."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  see process_group

from utils.data.datasets import Dataset

TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # variables that torchrun sets, and their defaults
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of the run: this one's rank, their number, and this one's rank on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that merges, writes and prints."""
        return self.rank == 0

    def part_of(self, dataset: Dataset) -> Dataset:
        """Return the dataset with only this process's images. The last processes may have none."""
        return replace(dataset, pairs=dataset.pairs[self.rank :: self.size])

    def gather(self, value: T) -> list[T] | None:
        """Return every process's `value`, in rank order, in the first process; None in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values)
        return values

    def from_first(self, value: T) -> T:
        """Return the first process's `value` in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that torchrun started, if any, and yield the World."""
    rank, size, local_rank = (int(os.environ.get(key, default)) for key, default in TORCHRUN.items())
    with process_group("gloo", size):  # records are exchanged, not tensors
        yield World(rank, size, local_rank)


@contextmanager
def process_group(backend: str, size: int) -> Iterator[None]:
    """Join torch's group of `size` processes while the context lasts. Do nothing for a single process.

    Functions of `torch.distributed.nn` have the group at the time of their import as a default argument. If the first
    optimizer imported them later, they would keep the group and its threads alive after its end. A thread that asked
    for the GIL while Python was shutting down has killed a finished process by SIGABRT.
    """
    if size > 1:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        if size > 1:
            dist.destroy_process_group()


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """Undo `part_of`: merge one list per process into the order of the whole."""
    return [part[index] for index in range(max(map(len, parts), default=0)) for part in parts if index < len(part)]
