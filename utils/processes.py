"""Processes that do not outlive the one that started them."""

import contextlib
import ctypes
import os
import signal

SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends for any reason (Linux; prctl(2)).

    `parent` is the parent's pid. If that process has already ended, exit at once.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)
