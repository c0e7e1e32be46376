"""The state that a model file must not change: settings of PyTorch and the process, and measuring functions."""

import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import fvcore.nn.jit_analysis
import fvcore.nn.jit_handles
import numpy as np
import torch
import torch.utils.flop_counter
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as FVCORE_HANDLES
from torch.nn.modules import module as nn_module
from torch.utils.flop_counter import flop_registry

import utils.measure.complexity
import utils.measure.counting
import utils.measure.runtime
import utils.measure.tiles

OWNERS: dict[str, tuple[Any, ...]] = {  # whose functions must not change
    "clocks": (time, torch.cuda.Event),
    "functions of torch": (torch.nn.Module, torch.nn.functional, torch.cuda, torch.jit, torch._C._nn),
    "functions that count": (
        sys.modules["__main__"],  # the loop that answers the host
        sys.modules["fvcore.nn.flop_count"],  # fvcore.nn has a function of this name
        FlopCountAnalysis,
        fvcore.nn.jit_analysis,
        fvcore.nn.jit_analysis.JitModelAnalysis,
        fvcore.nn.jit_handles,
        torch.utils.flop_counter,
        torch.utils.flop_counter.FlopCounterMode,
        utils.measure.counting,
        utils.measure.counting.OperatorWatch,
        utils.measure.complexity,
        utils.measure.runtime,
        utils.measure.tiles,
    ),
}
NO_MATTER = {"LD_LIBRARY_PATH"}  # read when a process starts, so that it changes nothing here; importing OpenCV sets it
NAMED: tuple[tuple[Any, tuple[str, ...]], ...] = (  # of owners too large to be listed whole
    (torch, ("load", "conv2d", "matmul", "sigmoid", "from_numpy", "rand", "no_grad")),
    (torch.Tensor, ("to", "cpu", "cuda", "copy_", "clone", "detach", "numpy", "contiguous", "__torch_function__")),
)


def snapshot() -> dict[str, Any]:
    """Return {name: value} of everything that importing, building or running a network must not change."""
    cudnn = torch.backends.cudnn
    values: dict[str, Any] = {
        "torch default dtype": torch.get_default_dtype(),
        "torch gradient mode": torch.is_grad_enabled(),
        "torch threads": torch.get_num_threads(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "hooks of all modules": tuple(map(len, (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks))),
        "cudnn settings": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "working directory": os.getcwd(),
        "environment variables": {name: value for name, value in os.environ.items() if name not in NO_MATTER},
        "sys.path": list(sys.path),
        "standard output": (sys.stdout, sys.stderr),
        "signal handlers": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "threads left running": threading.active_count(),
        "tracing and profiling": (sys.gettrace(), sys.getprofile()),
    }
    values["registries of counts"] = [dict.fromkeys(map(str, flop_registry)), dict.fromkeys(FVCORE_HANDLES)]
    for name, owners in OWNERS.items():
        values[name] = [functions_of(owner) for owner in owners]
    values["functions of torch"] += [functions_of(owner, names) for owner, names in NAMED]
    return values


def functions_of(owner: Any, names: Iterable[str] | None = None) -> dict[str, tuple[int, int, int]]:
    """Return {name: identity} of the callables of a module or class. A function's identity includes its code."""
    found = {name: vars(owner).get(name, getattr(owner, name, None)) for name in names or vars(owner)}
    return {name: _identity(value) for name, value in found.items() if callable(value)}


def _identity(function: Any) -> tuple[int, int, int]:
    inner = getattr(function, "__wrapped__", function)  # the function inside a decorator such as no_grad()
    return id(function), id(getattr(function, "__code__", None)), id(getattr(inner, "__code__", None))


def random_states() -> dict[str, Any]:
    """Return a digest of each random generator's state; building a network may draw from them, importing must not."""
    return {
        "torch random state": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy random state": hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest(),
        "Python random state": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs between two snapshots, or two dicts of random states.

    Added functions do not count.
    """
    return [_named(name, value, after[name]) for name, value in before.items() if _differs(value, after[name])]


def _named(name: str, before: Any, after: Any) -> str:
    if not isinstance(before, dict):
        return name
    return f"{name} ({', '.join(sorted({key for key, _ in before.items() ^ after.items()}))})"


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, list) and before and isinstance(before[0], dict):
        return any(old.items() - new.items() for old, new in zip(before, after, strict=True))
    return before != after
