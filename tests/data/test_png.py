"""utils/data/png.py: the same pixels as libpng, and what it leaves to libpng."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from tests.helpers import photograph
from utils.data import png

WIDTH = 23


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    if png.compiled_if_possible(png.FILTERS) is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr(png, "PIXELS", range(1, png.PIXELS.stop))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def file(rows, *extra, kind=(8, 2, 0, 0, 0), width=WIDTH):
    """A PNG of these filtered rows, put together by the standard library."""
    header = struct.pack(">II5B", width, len(rows), *kind)
    data = zlib.compress(b"".join(rows))
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", data[:9]), chunk(b"IDAT", data[9:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def random_rows(*filters):
    generator = np.random.default_rng(7)
    return [bytes([filter]) + generator.bytes(3 * WIDTH) for filter in filters]


def by_libpng(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[:, :, ::-1]


@pytest.mark.parametrize("filters", [*((number,) * 9 for number in range(5)), (4, 3, 2, 1, 0, 1, 2, 3, 4)])
def test_every_filter_is_undone_as_libpng_does_it(filters):
    data = file(random_rows(*filters))
    assert np.array_equal(png.decode(data), by_libpng(data))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 1), (64, 48)])
def test_libpng_reads_what_is_written(shape):
    image = photograph(*shape)
    data = png.encode(image)
    assert np.array_equal(by_libpng(data), image)
    assert np.array_equal(png.decode(data), image)


def test_part_of_an_image_is_written_alone():
    image = photograph(40, 40)[5:30:2, 3:20]
    assert np.array_equal(by_libpng(png.encode(image)), image)


def test_comments_are_passed_over():
    data = file(random_rows(1, 2), chunk(b"tEXt", b"Title\0x"), chunk(b"gAMA", struct.pack(">I", 45455)))
    assert np.array_equal(png.decode(data), by_libpng(data))


GOOD = file(random_rows(1, 2, 3))
LEFT_ALONE = {
    "16 bits": file([bytes(1 + 6 * WIDTH)], kind=(16, 2, 0, 0, 0)),
    "grey": file([bytes(1 + WIDTH)], kind=(8, 0, 0, 0, 0)),
    "alpha": file([bytes(1 + 4 * WIDTH)], kind=(8, 6, 0, 0, 0)),
    "interlaced": file([bytes(1 + 3)], kind=(8, 2, 0, 0, 1), width=1),
    "transparent colour": file(random_rows(1), chunk(b"tRNS", bytes(6))),
    "a filter that does not exist": file(random_rows(1, 5)),
    "pixels left out": file([row[:-1] for row in random_rows(1, 2)]),
    "pixels left over": file([row + b"x" for row in random_rows(1, 2)]),
    "cut": GOOD[:-20],
    "cut in a chunk's length": GOOD[:-10],
    "without an end": GOOD[:-12],
    "a byte changed": GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:],
    "enormous": file(random_rows(1), width=2**31 - 1),
    "no PNG": b"P6 1 1 255 abc",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_plain_or_not_sound_is_left_to_libpng(name):
    assert png.decode(LEFT_ALONE[name]) is None


def test_deflated_data_without_sense_is_left_to_libpng():
    header = chunk(b"IHDR", struct.pack(">II5B", 2, 2, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"no deflate") + chunk(b"IEND", b"")
    assert png.decode(data) is None


def test_small_image_is_left_to_libpng(monkeypatch):
    monkeypatch.setattr(png, "PIXELS", range(3 * WIDTH + 1, png.PIXELS.stop))
    assert png.decode(GOOD) is None
