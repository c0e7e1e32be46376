"""utils/data/images.py: reading, conversions, and MATLAB's bicubic."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import photograph
from utils.data.images import bicubic_downscale, crop_to_multiple, read_rgb, to_image, to_tensor, write_png
from utils.errors import HarnessError


def test_png_round_trip_keeps_every_pixel(tmp_path):
    image = photograph(13, 17)
    write_png(tmp_path / "new" / "folder" / "a.png", image)
    assert np.array_equal(read_rgb(tmp_path / "new" / "folder" / "a.png"), image)


def test_channels_are_red_green_blue(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((4, 4, 3), (0, 0, 255), np.uint8))  # OpenCV's order is BGR
    assert read_rgb(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_grey_png_gives_three_equal_channels(tmp_path):
    grey = photograph(12, 16)[:, :, 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_rgb(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))


def broken_images(folder):
    whole = cv2.imencode(".png", photograph(64, 64))[1].tobytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut_end.png").write_bytes(whole[:-6])
    jpeg = cv2.imencode(".jpg", photograph(64, 64))[1].tobytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    cv2.imwrite(str(folder / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    cv2.imwrite(str(folder / "alpha.png"), np.zeros((8, 8, 4), np.uint8))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    (folder / "damaged.png").write_bytes(bytes(damaged))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.png", "truncated PNG"),
        ("cut_end.png", "truncated PNG"),
        ("truncated.jpg", "damaged JPEG"),
        ("text.png", "not a readable image"),
        ("empty.png", "not a readable image"),
        ("folder.png", "cannot be read"),
        ("missing.png", "cannot be read"),
        ("deep.png", "16-bit"),
        ("alpha.png", "alpha"),
        ("damaged.png", "not a readable image"),
    ],
)
def test_bad_image_is_named_with_the_reason(tmp_path, name, reason):
    broken_images(tmp_path)
    with pytest.raises(HarnessError, match=reason) as caught:
        read_rgb(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_tensor_conversion_round_trips_every_grey_level(data_range):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(image, data_range)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.max() == data_range
    assert np.array_equal(to_image(tensor, data_range), image)


def test_output_is_clamped_and_rounded():
    values = torch.tensor([-0.3, 0.0, 100.6 / 255, 1.7]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_image(values)[:, :, 0].tolist() == [[0, 0], [101, 255]]


def test_crop_keeps_the_top_left():
    image = photograph(11, 14)
    assert np.array_equal(crop_to_multiple(image), image[:8, :12])


def exact_rows(image):
    """One pass of imresize by 1/4 along the rows in exact fractions, straight from the kernel's definition."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
        return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)

    height = image.shape[0]
    out = np.zeros((height // 4, *image.shape[1:]), np.uint8)
    for row in range(height // 4):
        center = Fraction(8 * row + 3, 2)  # of the output pixel, in input pixels
        weights = {tap: cubic((center - tap) / 4) for tap in range(4 * row - 8, 4 * row + 12)}
        total = sum(weights.values())
        for place in np.ndindex(image.shape[1:]):
            value = Fraction(0)
            for tap, weight in weights.items():
                mirrored = tap % (2 * height)
                mirrored = 2 * height - 1 - mirrored if mirrored >= height else mirrored
                value += weight / total * int(image[(mirrored, *place)])
            out[(row, *place)] = min(max(int((value + Fraction(1, 2)) // 1), 0), 255)
    return out


@pytest.mark.parametrize("size", [(8, 12), (16, 4), (20, 24)])
def test_bicubic_equals_exact_arithmetic(size):
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = exact_rows(exact_rows(image).swapaxes(0, 1)).swapaxes(0, 1)
    assert np.array_equal(bicubic_downscale(image), expected)


def test_bicubic_equals_matlab_on_set5(shared):
    for hr_path in sorted((shared / "benchmarks" / "Set5" / "HR").glob("*.png")):
        matlab = read_rgb(hr_path.parents[1] / "LR" / f"{hr_path.stem}x4.png")
        assert np.array_equal(bicubic_downscale(crop_to_multiple(read_rgb(hr_path))), matlab), hr_path.name


def test_bicubic_refuses_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="multiple of 4"):
        bicubic_downscale(photograph(10, 12))


@pytest.fixture
def jpeg():
    """The bytes of a JPEG, and its image as OpenCV decodes it."""
    data = cv2.imencode(".jpg", photograph(128, 160), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    return data, cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def zeros_in_the_middle(data):
    middle = len(data) // 2
    return data[:middle] + bytes(300) + data[middle + 300 :]


def cut_and_closed(data):
    return data[: len(data) // 2] + b"\xff\xd9"


@pytest.mark.parametrize("damage", [zeros_in_the_middle, cut_and_closed])
def test_jpeg_damaged_inside_is_refused_with_the_reason(jpeg, tmp_path, damage):
    (tmp_path / "a.jpg").write_bytes(damage(jpeg[0]))
    with pytest.raises(HarnessError, match=r"a\.jpg: damaged JPEG \(.+\); copy or download it again"):
        read_rgb(tmp_path / "a.jpg")


def test_whole_files_with_a_tail_are_read(jpeg, tmp_path):
    """As a phone appends a film to a photograph."""
    (tmp_path / "a.jpg").write_bytes(jpeg[0] + bytes(range(256)) * 40)
    assert np.array_equal(read_rgb(tmp_path / "a.jpg"), jpeg[1])
    write_png(tmp_path / "a.png", jpeg[1])
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + bytes(9000))
    assert np.array_equal(read_rgb(tmp_path / "a.png"), jpeg[1])


def test_jpeg_for_printing_is_read(tmp_path):
    Image.fromarray(photograph(32, 48)).convert("CMYK").save(tmp_path / "a.jpg")
    assert read_rgb(tmp_path / "a.jpg").shape == (32, 48, 3)
