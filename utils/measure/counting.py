"""What a network does as torch's dispatcher sees it: multiply-accumulates, and the time spent in operators and outside.

fvcore counts a trace; a network may know that it is traced, or compute where no tracer looks. The dispatcher sees every
operator of an ordinary pass, and what takes time between two operators is nobody's operator.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CALIBRATION_CALLS = 200


class OperatorWatch(TorchDispatchMode):
    """Counts `flops` (two for each multiply-accumulate) and the time of operators [s] of what runs inside.

    `watching_s` is the time spent in this class, operators included; `calls` how many there were.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = torch.device(device)
        self.flops, self.calls, self.operators_s, self.watching_s = 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        entered, kwargs = time.perf_counter(), kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                composed = func.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed  # of operators that have been seen
        start = time.perf_counter()
        output = func(*args, **kwargs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        end = time.perf_counter()
        self.operators_s += end - start
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=output)
        self.calls += 1
        self.watching_s += time.perf_counter() - entered
        return output


class Watched(NamedTuple):
    """What torch's dispatcher saw of a pass: multiply-accumulates, the time inside operators, and outside of them."""

    macs: int
    operators_ms: float
    outside_ms: float  # less the watching


@torch.no_grad()
def watched_pass(model: Callable[[Tensor], Any], lr: Tensor) -> Watched:
    """Run a network on 1 x 3 x H x W, on its device, and return what torch's dispatcher saw."""
    tiny = torch.zeros(1)
    _, calibration, calibration_s = _watch(lambda _: [tiny.neg() for _ in range(CALIBRATION_CALLS)], tiny)
    per_call_s = (calibration_s - calibration.watching_s) / CALIBRATION_CALLS
    _, watch, total_s = _watch(model, lr)
    outside_s = max(total_s - watch.watching_s - per_call_s * watch.calls, 0.0)
    return Watched(watch.flops // 2, 1000 * watch.operators_s, 1000 * outside_s)


def _watch(function: Callable[[Tensor], Any], lr: Tensor) -> tuple[Any, OperatorWatch, float]:
    watch = OperatorWatch(lr.device)
    start = time.perf_counter()
    with watch:
        output = function(lr)
    return output, watch, time.perf_counter() - start
