"""Processes that do not outlive the one that started them."""

import contextlib
import ctypes
import os
import signal

SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent is gone, however that ended (Linux; prctl(2)).

    If `parent`, its pid, is gone already, this process ends at once.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)
