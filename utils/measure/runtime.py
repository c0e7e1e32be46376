"""Runtime of a forward pass, in two honest forms: as the organizers take it, and steady."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import HarnessError
from utils.protocol import SCALE

PROTOCOL_METHOD = "forward pass alone, every image once per run, the first unwarmed one included, plain mean of all"
THROUGHPUT_MODE = "; throughput mode: images were read and judged on the same CPU meanwhile"
IDLE_MS = 0.1  # in which an idle GPU surely says that it is
CLOCKS = {"cuda": "torch.cuda.Event pair", "cpu": "time.perf_counter (CPU)"}


@torch.no_grad()
def timed_forward(model, lr):
    """Return (output, runtime [ms]) of one forward pass on 1 x 3 x H x W: CUDA events, or a monotonic clock.

    On a GPU, work that is still going on when the second event has passed, on a stream that no event waits for, counts.
    """
    if lr.device.type != "cuda":
        start = time.perf_counter()
        sr = model(lr)
        return sr, 1000 * (time.perf_counter() - start)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    sr = model(lr)
    end.record()
    end.synchronize()
    passed = time.perf_counter()
    torch.cuda.synchronize(lr.device)
    late_ms = 1000 * (time.perf_counter() - passed)
    return sr, start.elapsed_time(end) + (late_ms if late_ms > IDLE_MS else 0.0)


def check_output(output, lr_size, file, batch=1):
    """Raise HarnessError unless a network's output for LR images of (H, W) is a plain tensor of batch x 3 x 4H x 4W.

    A subclass of torch.Tensor could compute when it is read, after the clock has stopped.
    """
    expected = (batch, 3, SCALE * lr_size[0], SCALE * lr_size[1])
    plain = type(output) is torch.Tensor
    if not plain or tuple(output.shape) != expected:
        given = tuple(output.shape) if plain else type(output).__name__
        size = f"{lr_size[1]} x {lr_size[0]}"
        raise HarnessError(f"{file}: output is {given} for an LR image of {size}, expected {expected}")


@dataclass(frozen=True)
class SteadyRuntime:
    """Runtime of repeated forward passes on one LR size [pixels] after a warm-up: median, 10th and 90th percentile."""

    lr_height: int
    lr_width: int
    warmup: int
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float


def measure_steady_runtime(forward, inputs, warmup, repeats):
    """Time `repeats` passes after `warmup` passes that do not count, each on the next of `inputs`, of one size.

    `forward(lr)` of 1 x 3 x H x W gives a tuple whose second value is the runtime [ms].
    """
    inputs = iter(inputs)
    for _ in range(warmup):
        forward(next(inputs))
    runtimes = []
    for _ in range(repeats):
        lr = next(inputs)
        runtimes.append(forward(lr)[1])
    p10, median, p90 = np.percentile(runtimes, [10, 50, 90])
    return SteadyRuntime(*lr.shape[2:], warmup, repeats, float(median), float(p10), float(p90))
