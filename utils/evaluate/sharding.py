"""One evaluation by several processes, started by torchrun: each takes every `world`-th image, the first one merges."""

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  see process_group

TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # what it sets, and the default without it


@dataclass(frozen=True)
class Shard:
    """This process's place among those of the run, and on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self):
        return self.rank == 0

    def part_of(self, dataset):
        """Return the dataset with this process's images; the last processes' may be none."""
        return replace(dataset, pairs=dataset.pairs[self.rank :: self.world])

    def gather(self, value):
        """Return every process's `value`, in rank order, in the first process; None in the others."""
        if self.world == 1:
            return [value]
        values = [None] * self.world if self.is_first else None
        dist.gather_object(value, values)
        return values

    def from_first(self, value):
        """Return the first process's `value` in every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self):
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined_shard():
    """Join the processes that torchrun started, if it did; give this one's Shard."""
    rank, world, local_rank = (int(os.environ.get(key, default)) for key, default in TORCHRUN.items())
    with process_group("gloo", world):  # figures travel, no tensors
        yield Shard(rank, world, local_rank)


@contextmanager
def process_group(backend, world):
    """Join torch's group of `world` processes, if they are several, for as long as the context lasts.

    Functions of `torch.distributed.nn` have the group of the moment of their import as a default argument. Imported
    later, as by the first optimizer, they would keep it beyond its end, and its threads with it: one that asked for
    Python's lock while Python ended has killed a finished process by SIGABRT.
    """
    if world > 1:
        dist.init_process_group(backend)
    try:
        yield
    finally:
        if world > 1:
            dist.destroy_process_group()


def interleave(parts):
    """Undo `part_of`: merge one list per process into the order of the whole."""
    merged = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        merged[rank :: len(parts)] = part
    return merged
