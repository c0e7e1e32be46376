"""What a network does as torch's dispatcher sees it: multiply-accumulates, and the time spent in operators and outside.

fvcore counts a trace; a network may know that it is traced, or compute where no tracer looks. The dispatcher sees every
operator of an ordinary pass, and what takes time between two operators is nobody's operator.
"""

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CALIBRATION_CALLS = 200


class OperatorWatch(TorchDispatchMode):
    """Counts `flops` (two for each multiply-accumulate) and the time of operators [s] of what runs inside.

    `watching_s` is the time spent in this class, operators included; `calls` how many there were.
    """

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)
        self.flops, self.calls, self.operators_s, self.watching_s = 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
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


@torch.no_grad()
def watched_pass(model, lr):
    """Return what torch's dispatcher saw of one pass over 1 x 3 x H x W on the network's device.

    `macs` multiply-accumulates, `operators_ms` inside operators, `outside_ms` outside of them, less the watching.
    """
    tiny = torch.zeros(1)
    _, calibration, calibration_s = _watch(lambda _: [tiny.neg() for _ in range(CALIBRATION_CALLS)], tiny)
    per_call_s = (calibration_s - calibration.watching_s) / CALIBRATION_CALLS
    _, watch, total_s = _watch(model, lr)
    outside_s = max(total_s - watch.watching_s - per_call_s * watch.calls, 0.0)
    return {"macs": watch.flops // 2, "operators_ms": 1000 * watch.operators_s, "outside_ms": 1000 * outside_s}


def _watch(function, lr):
    watch = OperatorWatch(lr.device)
    start = time.perf_counter()
    with watch:
        output = function(lr)
    return output, watch, time.perf_counter() - start
