"""What a model file must leave alone: settings of PyTorch and the process, and the functions that measure it."""

import hashlib
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch

from utils.zoo.registry import build_model, import_model


def snapshot():
    """Return {name: value} of everything that importing, building or running a network must not change."""
    cudnn = torch.backends.cudnn
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch gradient mode": torch.is_grad_enabled(),
        "torch threads": torch.get_num_threads(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch float32 matmul precision": torch.get_float32_matmul_precision(),
        "cudnn settings": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "working directory": os.getcwd(),
        "environment variables": dict(os.environ),
        "sys.path": list(sys.path),
        "standard output": (sys.stdout, sys.stderr),
        "signal handlers": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "threads left running": threading.active_count(),
        "functions of torch": (torch.load, torch.nn.Module.__call__, torch.nn.functional.conv2d, torch.Tensor.to),
        "clocks": (time.perf_counter, torch.cuda.Event, torch.cuda.synchronize),
    }


def random_states():
    """Return a digest of each random generator's state; building a network may draw from them, importing must not."""
    return {
        "torch random state": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy random state": hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest(),
        "Python random state": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
    }


def changes_by(entry):
    """Import, build and run an entry's network once in this process; return the names of what that changed.

    Raises HarnessError, or whatever the network raises when it runs.
    """
    before, random_before = snapshot(), random_states()
    import_model(entry)
    random_after = random_states()
    with torch.no_grad():
        build_model(entry).eval()(torch.rand(1, 3, 32, 32) * entry.data_range)
    after = snapshot()
    changed = [name for name in random_before if random_before[name] != random_after[name]]
    return changed + [name for name in before if before[name] != after[name]]
