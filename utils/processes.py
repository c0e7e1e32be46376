"""Processes that do not outlive the one that started them."""

import contextlib
import ctypes
import signal

SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def end_with_parent():
    """Have the kernel kill this process when its parent is gone, however that ended (Linux; prctl(2))."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
