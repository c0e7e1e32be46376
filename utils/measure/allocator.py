"""The C library's allocator, told what to do with memory that was freed; glibc's alone can be told."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int
SMALL = 2**16  # bytes


def keep_freed_memory() -> None:
    """Keep large arrays in the heap instead of mapping them again in every pass; does nothing without glibc.

    glibc gives arrays of some size back to the kernel when they are freed, and the kernel clears every page again when
    the next pass asks for them. Both thresholds count: raising one alone leaves the other way open.
    """
    _set(M_MMAP_THRESHOLD, LARGEST)
    _set(M_TRIM_THRESHOLD, LARGEST)


def give_back_freed_memory() -> None:
    """Map every array by itself, so that a process holds what is in use and little else; does nothing without glibc.

    By itself glibc learns, from what is freed first, which arrays to keep: that let the peak of one network differ by a
    quarter from process to process.
    """
    _set(M_MMAP_THRESHOLD, SMALL)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
        ctypes.CDLL(None).mallopt(parameter, value)
