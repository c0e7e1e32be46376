"""The C library's allocator, told to keep memory that a pass or a training step frees, for the next one to use."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory():
    """Keep large arrays in the heap instead of mapping them anew in every pass; does nothing without glibc.

    glibc gives arrays of some size back to the kernel when they are freed, and the kernel clears every page again when
    the next pass asks for them. Both thresholds count: raising one alone leaves the other way open.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
