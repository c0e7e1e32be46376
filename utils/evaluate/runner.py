"""Run a trusted model in this process. `utils/isolation` has the same interface for untrusted models."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.datasets import Dataset
from utils.data.images import to_tensor
from utils.measure.architecture import Architecture, traced_architecture
from utils.measure.complexity import measure_complexity, traced_macs
from utils.measure.counting import Watched, stored_values, watched_pass
from utils.measure.memory import cpu_peak_mib, gpu_peak_mib, reset_peak
from utils.measure.runtime import Pass
from utils.measure.tiles import forward_within_memory, reach
from utils.record import Audit, Computed, Counts, Isolation, Record, Repository, WeightsInfo
from utils.zoo.registry import LoadedModel, ModelEntry, build_model, plain_entry


class ModelRunner(Protocol):
    """The interface that a measurement needs of a model, in whichever process its code runs.

    `weights` says how the weights were loaded. `repository` is the organizers' checkout that the model comes from, or
    None. `threads` is the network's number of threads.
    """

    entry: ModelEntry
    device: torch.device
    weights: WeightsInfo
    repository: Repository | None
    isolation: Isolation
    threads: int

    def forward(self, lr: Tensor) -> Pass:
        """Restore a 1 x 3 x H x W tensor on the CPU, in [0, data_range]; see `forward_within_memory`."""
        ...

    def count(self) -> Counts:
        """Return the network's counts; a variant counts as the network whose function it computes."""
        ...

    def architecture(self) -> Architecture:
        """Return the network's blocks and the data flow among them; of a variant, those of the plain network."""
        ...

    def reach(self) -> int:
        """Return the network's reach [LR pixels]; see `utils.measure.tiles.reach`."""
        ...

    def computed(self, photograph: np.ndarray) -> Computed | None:
        """Return what torch's dispatcher sees of passes, one over H x W x 3 uint8, or None if it cannot see them."""
        ...

    def reset_peak(self) -> None:
        """Start a new peak of memory on a GPU."""
        ...

    def gpu_peak_mib(self) -> float | None:
        """Return the peak GPU memory [MiB] since `reset_peak`; None on a CPU."""
        ...

    def cpu_peak_mib(self, lr_shape: tuple[int, ...]) -> float:
        """Return the peak resident growth [MiB] of a fresh process for one pass over 1 x 3 x H x W."""
        ...

    def audit(self, record: Record, dataset: Dataset) -> Audit | None:
        """Return the audit of the record's figures, or None if there was no audit."""
        ...


def counted_network(entry: ModelEntry, network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network to count for an entry: its own, or the plain one without weights for a variant.

    A variant computes another network's function by other means, which FLOPs and activations do not describe.
    """
    return build_model(plain_entry(entry)).eval().to(device) if entry.variant else network


def computed(noise: Watched, photograph_macs: int, traced: int, parameter_values: int) -> Computed:
    """Return the counts of watched passes in the form of a record."""
    return Computed(
        macs=noise.macs,
        photograph_macs=photograph_macs,
        traced_macs=traced,
        summed_products=noise.summed_products,
        convs=noise.convs,
        activations=noise.activations,
        values=parameter_values + noise.hidden_values,
        hidden_values=noise.hidden_values,
        hidden=noise.hidden,
        made_weights=noise.made_weights,
        unpacked_weights=noise.unpacked_weights,
        unknown=noise.unknown,
    )


class Runner:
    """Runs a `LoadedModel` in this process, on a torch device; a ModelRunner."""

    isolation = Isolation.NONE
    repository: Repository | None = None

    def __init__(self, loaded: LoadedModel, device: torch.device):
        self.model, self.device = loaded.model, device
        self.entry, self.weights = loaded.entry, loaded.weights
        self.threads = torch.get_num_threads()

    def forward(self, lr: Tensor) -> Pass:
        return forward_within_memory(self.model, lr.to(self.device))

    def count(self) -> Counts:
        return measure_complexity(counted_network(self.entry, self.model, self.device))

    def architecture(self) -> Architecture:
        network = counted_network(self.entry, self.model, self.device)
        return traced_architecture(network, self.device, self.entry.data_range)

    def reach(self) -> int:
        return reach(self.model, self.device, self.entry.data_range)

    def computed(self, photograph: np.ndarray) -> Computed | None:
        if self.entry.variant:
            return None
        try:
            lr = to_tensor(photograph, self.entry.data_range).to(self.device)
            noise = torch.rand(lr.shape, device=self.device) * self.entry.data_range
            macs = watched_pass(self.model, lr)[0].macs
            seen, _ = watched_pass(self.model, noise)
            return computed(seen, macs, traced_macs(self.model, noise), stored_values(self.model))
        except Exception:  # a network that cannot be watched, such as a compiled one, is not an error
            return None

    def reset_peak(self) -> None:
        reset_peak(self.device)

    def gpu_peak_mib(self) -> float | None:
        return gpu_peak_mib(self.device)

    def cpu_peak_mib(self, lr_shape: tuple[int, ...]) -> float:
        return cpu_peak_mib(self.entry, lr_shape)

    def audit(self, record: Record, dataset: Dataset) -> Audit | None:
        return None
