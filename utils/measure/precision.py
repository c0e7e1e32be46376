"""Number types: the fast one on a device, and the cost of an emulated one."""

import time
from typing import Literal

import torch
import torch.nn.functional as F

from utils.measure.environment import has_bfloat16

COSTLY = 1.2  # ratio to the time in float32 from which a number type gets a warning
ROUNDS = 5


def fast_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return "bfloat16" where a device has it, else "float32"."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def convolution_cost(device: torch.device, precision: str) -> float:
    """Return the ratio of a convolution's time to that in float32, from a short timing.

    Time a 3x3 convolution of 48 channels on 64 x 64 pixels. The types take turns, and each one's fastest pass counts.
    """
    x, weight = torch.rand(1, 48, 64, 64, device=device), torch.rand(48, 48, 3, 3, device=device)
    types = {"float32": torch.float32, precision: getattr(torch, precision)}
    fastest = dict.fromkeys(types, float("inf"))
    for _ in range(ROUNDS):
        for name, dtype in types.items():
            inputs = x.to(dtype), weight.to(dtype)
            start = time.perf_counter()
            F.conv2d(*inputs, padding=1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest[precision] / fastest["float32"]


def cost_line(device: torch.device, precision: str) -> str | None:
    """Return a line on the cost of a number type if it is slow on the device, else None."""
    cost = 1.0 if precision == "float32" else convolution_cost(device, precision)
    if cost < COSTLY:
        return None
    return (
        f"{precision}: PyTorch emulates it on this processor, where a convolution takes {cost:.1f} times as long as in "
        "float32"
    )
