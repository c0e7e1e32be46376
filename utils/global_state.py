"""What a model file must leave alone: settings of PyTorch and the process, and the functions that measure it."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch

from utils.errors import HarnessError, in_one_line
from utils.registry import build_model, import_model


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


def changes_by(entry, timeout_s=120):
    """Import, build and run an entry's network once in a fresh process; return the names of what it changed there.

    Raises HarnessError if that process raises, dies or does not end in time.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_watch, args=(entry, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise HarnessError(f"{entry.file}: not imported, built and run within {timeout_s} s")
        answer = receiver.recv()
    except EOFError as error:
        process.join()
        raise HarnessError(f"{entry.file}: ends its process with status {process.exitcode}") from error
    finally:
        process.kill()
    if isinstance(answer, str):
        raise HarnessError(answer)
    return answer


def _watch(entry, sender):
    try:
        before, random_before = snapshot(), random_states()
        import_model(entry)
        random_after = random_states()
        with torch.no_grad():
            build_model(entry).eval()(torch.rand(1, 3, 32, 32) * entry.data_range)
        after = snapshot()
    except Exception as error:
        message = str(error) if isinstance(error, HarnessError) else f"{entry.file}: {in_one_line(error)}"
        sender.send(message)
        return
    changed = [name for name in random_before if random_before[name] != random_after[name]]
    sender.send(changed + [name for name in before if before[name] != after[name]])
