"""Control what the C library's allocator does with freed memory; this works only with glibc."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int
SMALL = 2**16  # bytes


def keep_freed_memory() -> None:
    """Keep large arrays in the heap instead of mapping them again in every pass; do nothing without glibc.

    glibc returns large freed arrays to the kernel, which clears every page again when the next pass asks for it. Both
    thresholds must be raised, because memory is returned in two ways.
    """
    _set(M_MMAP_THRESHOLD, LARGEST)
    _set(M_TRIM_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Map every array separately, so that a process holds little more than it uses; do nothing without glibc.

    By default, glibc learns from the arrays freed first which ones to keep. The peak of one network then differed by a
    quarter from process to process.
    """
    _set(M_MMAP_THRESHOLD, SMALL)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
        ctypes.CDLL(None).mallopt(parameter, value)
