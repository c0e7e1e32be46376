"""Peak memory: of the GPU over a whole run, or on a CPU the growth of a fresh process during one forward pass."""

import multiprocessing
import resource
import sys
from pathlib import Path

import psutil
import torch

from utils.errors import HarnessError
from utils.measure.allocator import give_back_freed_memory
from utils.zoo.registry import load_model

GPU_METHOD = "torch.cuda.max_memory_allocated over the whole run"
CPU_METHOD = (
    "peak resident growth of a fresh process that keeps nothing freed, in one pass over the largest image (CPU)"
)
RESET_PEAK = "5"  # what Linux takes for it in /proc/PID/clear_refs


def memory_method(device: torch.device) -> str:
    """Return how peak memory is measured on a device, as a record has it."""
    if device.type == "cuda":
        return GPU_METHOD
    return CPU_METHOD + (
        "" if reset_high_water("self") else "; what the network took while it was built may count, too"
    )


def reset_high_water(pid: int | str) -> bool:
    """Start a new peak of a process's resident memory; return whether the system lets us."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)
        return True
    except OSError:
        return False


def measure_peak_mib(loaded, lr_shape, device):
    """Peak memory [MiB]: on a GPU since `reset_peak`, on a CPU for one pass over 1 x 3 x H x W (`lr_shape`)."""
    return gpu_peak_mib(device) if device.type == "cuda" else cpu_peak_mib(loaded.entry, lr_shape)


def gpu_peak_mib(device):
    """Peak GPU memory [MiB] since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def reset_peak(device):
    """Start a new peak on a GPU; on a CPU there is nothing to do."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def cpu_peak_mib(entry, lr_shape):
    """Peak resident growth [MiB] of a fresh process that passes a random `lr_shape` image through an entry's network.

    A process of its own, since memory that an allocator kept from earlier work would hide the growth; and none is kept
    there, as a GPU's peak counts none. Raises HarnessError if that process dies.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_in_child, args=(entry, tuple(lr_shape), torch.get_num_threads(), sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        raise HarnessError(
            f"{entry.file}: the process that measures memory ended with status {process.exitcode}; is memory short?"
        ) from error
    finally:
        process.join()


@torch.no_grad()
def _measure_in_child(entry, lr_shape, threads, sender):
    torch.set_num_threads(threads)
    give_back_freed_memory()
    model = load_model(entry, "cpu").model
    lr = torch.rand(lr_shape)
    model(lr[:, :, :16, :16])  # what the libraries set up once is not the network's
    reset_high_water("self")  # a network may have taken more while it was built
    before = psutil.Process().memory_info().rss
    model(lr)
    sender.send(max(peak_rss_bytes() - before, 0) / 2**20)


def peak_rss_bytes():
    """Peak resident memory of this process so far."""
    peak = high_water_bytes("self")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def high_water_bytes(pid):
    """Peak resident memory of a process so far, None where the system does not tell."""
    # ru_maxrss of a process on Linux starts at its parent's; VmHWM is its own.
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
