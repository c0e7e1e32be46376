"""Who runs a model: this process, for models that are trusted; `utils/referee` has the same methods for strangers'."""

import torch
from torch import nn

from utils.measure.complexity import INPUT_SHAPE, measure_complexity
from utils.measure.counting import watched_pass
from utils.measure.memory import cpu_peak_mib, gpu_peak_mib, reset_peak
from utils.measure.tiles import forward_within_memory, reach
from utils.zoo.registry import ModelEntry, build_model, plain_entry


def counted_network(entry: ModelEntry, network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network that is counted for an entry: its own, or of a variant the plain one, without its weights.

    A variant computes another network's function by other means, of which FLOPs and activations say nothing.
    """
    return build_model(plain_entry(entry)).eval().to(device) if entry.variant else network


class Runner:
    """Runs a `LoadedModel` in this process, on a torch device."""

    process = "the judge's"

    def __init__(self, loaded, device):
        self.model, self.device = loaded.model, device
        self.entry, self.sha256, self.provenance = loaded.entry, loaded.sha256, loaded.provenance
        self.missing_weights, self.ignored = loaded.missing_weights, loaded.ignored
        self.checkpoint_notes = list(loaded.notes)
        self.repository = None  # an organizers' repository that the model comes from
        self.threads = torch.get_num_threads()

    def forward(self, lr):
        """Return (output, runtime [ms], tile) of a 1 x 3 x H x W tensor on the CPU; see `forward_within_memory`."""
        return forward_within_memory(self.model, lr.to(self.device))

    def count(self):
        """Return the network's Complexity; a variant counts as the network whose function it computes."""
        return measure_complexity(counted_network(self.entry, self.model, self.device))

    def reach(self):
        """Return how far the network looks [LR pixels]."""
        return reach(self.model, self.device, self.entry.data_range)

    def seen_macs(self):
        """Return the multiply-accumulates of a pass that torch's dispatcher sees; None if it cannot look."""
        try:
            lr = torch.rand(INPUT_SHAPE, device=self.device) * self.entry.data_range
            return watched_pass(self.model, lr)["macs"]
        except Exception:  # what a network computes by other means, compiled say, is no error
            return None

    def reset_peak(self):
        """Start a new peak of memory on a GPU."""
        reset_peak(self.device)

    def gpu_peak_mib(self):
        """Peak GPU memory [MiB] since `reset_peak`; None on a CPU."""
        return gpu_peak_mib(self.device)

    def cpu_peak_mib(self, lr_shape):
        """Peak resident growth [MiB] of a fresh process for one pass over 1 x 3 x H x W."""
        return cpu_peak_mib(self.entry, lr_shape)

    def audit(self, record, dataset):
        """Return what was found amiss while the record's figures were taken; None where nobody looked."""
        return None
