"""Runtime of a forward pass in two honest forms: measured as the organizers do, and steady."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import HarnessError
from utils.protocol import SCALE
from utils.record import Clock, SteadyRuntime

IDLE_MS = 0.1  # in which an idle GPU surely reports that it is idle
CLOCKS = {"cuda": Clock.CUDA_EVENTS, "cpu": Clock.WALL}  # by type of device


class Pass(NamedTuple):
    """A forward pass: 1 x 3 x 4H x 4W, its runtime, and the LR side of the tiles [pixels] if there were any."""

    output: Tensor
    runtime_ms: float
    tile: int | None = None


@torch.no_grad()
def timed_forward(model: nn.Module, lr: Tensor) -> Pass:
    """Time one forward pass on 1 x 3 x H x W, by CUDA events or a monotonic clock.

    On a GPU, work on a stream that no event waits for also counts if it is still running after the second event.
    """
    if lr.device.type != "cuda":
        start = time.perf_counter()
        sr = model(lr)
        return Pass(sr, 1000 * (time.perf_counter() - start))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    sr = model(lr)
    end.record()
    end.synchronize()
    passed = time.perf_counter()
    torch.cuda.synchronize(lr.device)
    late_ms = 1000 * (time.perf_counter() - passed)
    return Pass(sr, begin.elapsed_time(end) + (late_ms if late_ms > IDLE_MS else 0.0))


def check_output(output: Tensor, lr_size: Sequence[int], file: str, batch: int = 1) -> None:
    """Raise HarnessError unless a network's output for LR images of (H, W) is a plain tensor of batch x 3 x 4H x 4W.

    A subclass of torch.Tensor is refused, because it could compute when it is read, after the clock has stopped.
    """
    expected = (batch, 3, SCALE * lr_size[0], SCALE * lr_size[1])
    plain = type(output) is torch.Tensor
    if not plain or tuple(output.shape) != expected:
        given = tuple(output.shape) if plain else type(output).__name__
        size = f"{lr_size[1]} x {lr_size[0]}"
        raise HarnessError(f"{file}: output is {given} for an LR image of {size}, expected {expected}")


def measure_steady_runtime(
    forward_ms: Callable[[Tensor], float], inputs: Iterable[Tensor], warmup: int, repeats: int
) -> SteadyRuntime:
    """Time `repeats` passes after `warmup` uncounted ones, each on the next of `inputs`, which all have one size.

    `forward_ms(lr)` runs a pass over 1 x 3 x H x W and returns its runtime [ms].
    """
    inputs = iter(inputs)
    for _ in range(warmup):
        forward_ms(next(inputs))
    runtimes = []
    for _ in range(repeats):
        lr = next(inputs)
        runtimes.append(forward_ms(lr))
    height, width = lr.shape[2:]
    return SteadyRuntime(lr_height=height, lr_width=width, warmup=warmup, repeats=repeats, **percentiles(runtimes))


def percentiles(runtimes: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the median and the 10th and 90th percentile of runtimes [ms], under SteadyRuntime's names."""
    p10, median, p90 = np.percentile(runtimes, [10, 50, 90])
    return {"median_ms": float(median), "p10_ms": float(p10), "p90_ms": float(p90)}
