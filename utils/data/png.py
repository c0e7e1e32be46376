"""8-bit RGB PNG files, several times as fast as libpng: deflate by ISA-L, filters in numpy and C.

What is not plain, and what is broken, is left to libpng. Source: W3C, Portable Network Graphics (PNG) Specification.
"""

import ctypes
import struct
from pathlib import Path

import numpy as np
from isal import isal_zlib

from models.cpu.compiler import compiled_if_possible

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PLAIN = 8, 2, 0, 0, 0  # bits, RGB, deflate, the usual filters, not interlaced
ABOVE = 2  # the filter that takes the row above off
LEVEL = 1  # of ISA-L's 0 to 3
IGNORED = {b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"eXIf"}
FILTERS = Path(__file__).with_suffix(".c")
PIXELS = range(1 << 18, 1 << 30)  # a smaller image is not worth compiling for; of a larger one OpenCV takes none


def encode(image):
    """Return H x W x 3 uint8 RGB as the bytes of a PNG file."""
    height, width = image.shape[:2]
    values = image.reshape(height, -1)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = ABOVE
    rows[:1, 1:] = values[:1]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    header = struct.pack(">II5B", width, height, *PLAIN)
    data = isal_zlib.compress(rows, LEVEL)
    return b"".join((SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b"")))


def decode(data):
    """Return a PNG file's bytes as H x W x 3 uint8 RGB; None if that is not for this module.

    That is a file that is not plain or not sound, a small or an enormous image, or any without a C compiler.
    """
    chunks = _chunks(data)
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return None
    width, height, *kind = struct.unpack(">II5B", chunks[0][1])
    names = {name for name, _ in chunks[1:]} - IGNORED
    if tuple(kind) != PLAIN or names != {b"IDAT", b"IEND"} or height * width not in PIXELS:
        return None
    if compiled_if_possible(FILTERS) is None:
        return None
    size = height * (1 + 3 * width)
    try:
        inflated = isal_zlib.decompressobj()
        rows = inflated.decompress(b"".join(part for name, part in chunks if name == b"IDAT"), size + 1)
    except isal_zlib.error:
        return None
    if len(rows) != size or not inflated.eof:
        return None
    image = np.empty((height, width, 3), np.uint8)
    return image if unfilter(rows, image) else None


def unfilter(rows, image):
    """Fill H x W x 3 uint8 from the bytes of filtered rows; return whether all their filters exist."""
    function = compiled_if_possible(FILTERS).unfilter
    function.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]
    return not function(rows, *image.shape[:2], image.ctypes.data)


def _chunk(name, data):
    """The parts of a chunk, uncopied: copying holds Python's lock, which a network's next kernel may wait for."""
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(name)))


def _chunks(data):
    """Return a file's chunks as (name, data), or nothing if it is not sound as far as they go."""
    if not data.startswith(SIGNATURE):
        return []
    view, at, chunks = memoryview(data), len(SIGNATURE), []
    while at < len(data):
        if at + 12 > len(data):
            return []
        (length,) = struct.unpack_from(">I", data, at)
        body = view[at + 4 : at + 8 + length]
        checked = view[at + 8 + length : at + 12 + length]
        if len(checked) < 4 or struct.unpack(">I", checked) != (isal_zlib.crc32(body),):
            return []
        chunks.append((bytes(body[:4]), body[4:]))
        at += 12 + length
    return chunks
