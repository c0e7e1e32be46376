"""Runtime of a forward pass, in two honest forms: as the organizers take it, and steady."""

import time
from dataclasses import dataclass

import numpy as np
import torch

PROTOCOL_METHOD = "forward pass alone, every image once per run, the first unwarmed one included, plain mean of all"
THROUGHPUT_MODE = "; throughput mode: images were read and judged on the same CPU meanwhile"
CLOCKS = {"cuda": "torch.cuda.Event pair", "cpu": "time.perf_counter (CPU)"}


@torch.no_grad()
def timed_forward(model, lr):
    """Return (output, runtime [ms]) of one forward pass on 1 x 3 x H x W: CUDA events, or a monotonic clock."""
    if lr.device.type != "cuda":
        start = time.perf_counter()
        sr = model(lr)
        return sr, 1000 * (time.perf_counter() - start)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    sr = model(lr)
    end.record()
    torch.cuda.synchronize(lr.device)
    return sr, start.elapsed_time(end)


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
