"""Peak memory: a GPU's over a whole run, or on a CPU the growth of a fresh process during one forward pass."""

import multiprocessing
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from utils.errors import HarnessError
from utils.measure.allocator import give_back_freed_memory
from utils.record import MemoryMethod
from utils.zoo.registry import LoadedModel, ModelEntry, load_model

RESET_PEAK = "5"  # the value to write to /proc/PID/clear_refs on Linux


def memory_method(device: torch.device) -> MemoryMethod:
    """Return how peak memory is measured on a device."""
    if device.type == "cuda":
        return MemoryMethod.GPU_ALLOCATED
    can_reset = reset_high_water("self")
    return MemoryMethod.PROCESS_GROWTH if can_reset else MemoryMethod.PROCESS_GROWTH_WITH_BUILDING


def reset_high_water(pid: int | str) -> bool:
    """Reset the peak of a process's resident memory. Return whether the system allows it."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)
        return True
    except OSError:
        return False


def measure_peak_mib(loaded: LoadedModel, lr_shape: tuple[int, ...], device: torch.device) -> float | None:
    """Return the peak memory [MiB]: on a GPU since `reset_peak`, on a CPU of one pass over 1 x 3 x H x W."""
    return gpu_peak_mib(device) if device.type == "cuda" else cpu_peak_mib(loaded.entry, lr_shape)


def gpu_peak_mib(device: torch.device) -> float | None:
    """Return the peak GPU memory [MiB] since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory of a GPU; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def cpu_peak_mib(entry: ModelEntry, lr_shape: tuple[int, ...]) -> float:
    """Return the peak resident growth [MiB] of a fresh process in a pass of a network over a random `lr_shape`.

    This needs a separate process, because memory that an allocator kept from earlier work would hide the growth. That
    process keeps no freed memory, just as a GPU's peak counts none. Raise HarnessError if it dies.
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
    except KeyboardInterrupt:
        process.kill()
        raise
    finally:
        process.join()


@torch.no_grad()
def _measure_in_child(entry: ModelEntry, lr_shape: tuple[int, ...], threads: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent is also interrupted, and ends it
    torch.set_num_threads(threads)
    give_back_freed_memory()
    model = load_model(entry, torch.device("cpu")).model
    lr = torch.rand(lr_shape)
    model(lr[:, :, :64, :64])  # the libraries' one-time setup does not belong to the network
    reset_high_water("self")  # a network may have taken more while it was built
    before = psutil.Process().memory_info().rss
    model(lr)
    sender.send(max(peak_rss_bytes() - before, 0) / 2**20)


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process so far [bytes]."""
    peak = high_water_bytes("self")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def high_water_bytes(pid: int | str) -> int | None:
    """Return the peak resident memory of a process so far [bytes], or None if the system does not report it."""
    # ru_maxrss of a process on Linux starts at its parent's; VmHWM is its own.
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
