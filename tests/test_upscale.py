"""utils/upscale.py: any photograph as a person expects it."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from torch import nn

from utils.errors import HarnessError
from utils.upscale import read_photograph, target_files, upscale

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def saved(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def test_png_is_read_as_it_is(tmp_path):
    assert (read_photograph(saved(tmp_path / "a.png", PHOTO)) == PHOTO).all()


def test_photograph_is_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = saved(tmp_path / "a.png", PHOTO, exif=exif)
    assert (read_photograph(path) == np.rot90(PHOTO, -1)).all()


def test_grey_is_three_equal_channels(tmp_path):
    image = read_photograph(saved(tmp_path / "a.png", PHOTO[..., 0]))
    assert (image == PHOTO[..., :1]).all()


def test_sixteen_bits_and_transparency_are_told(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "deep.png"), PHOTO.astype(np.uint16) * 257)
    assert (read_photograph(tmp_path / "deep.png") == PHOTO[..., ::-1]).all()  # which OpenCV takes for BGR
    assert "16 bits are rounded to 8" in capsys.readouterr().out
    read_photograph(saved(tmp_path / "clear.png", np.dstack([PHOTO, PHOTO[..., 0]])))
    assert "its transparency is left out" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "words"), [(b"", "not a readable image"), (None, "cannot be read")])
def test_what_is_not_an_image_costs_a_line(tmp_path, content, words):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HarnessError, match=words):
        read_photograph(path)


def test_two_photographs_of_one_name_are_refused(tmp_path):
    with pytest.raises(HarnessError, match="would be written to the same"):
        target_files([tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.png"], tmp_path)


def test_tiles_give_the_image(tmp_path):
    large = np.random.default_rng(1).integers(0, 256, (90, 70, 3), np.uint8)
    expected = large.repeat(4, 0).repeat(4, 1)
    assert (upscale(nn.Upsample(scale_factor=4), large) == expected).all()
    assert (upscale(nn.Upsample(scale_factor=4), large, tile=48) == expected).all()


def test_command_writes_four_times_the_size(command, tmp_path):
    photo = saved(tmp_path / "holiday é.png", PHOTO)
    result = command("-m", "utils.upscale", photo, "--out", "big", "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    image = Image.open(io.BytesIO((tmp_path / "big" / "holiday é_x4.png").read_bytes()))
    assert image.size == (120, 80)
