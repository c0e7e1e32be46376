"""training/data/compress.py: a small copy of a training set."""

import io

import numpy as np
import pytest
from PIL import Image

from training.data.compress import avif, in_random_order
from training.data.subimages import SubImages, write_index, write_shard
from training.prepare import list_images, read_photograph


def a_set(folder, images):
    shard = write_shard(
        folder / "shard-00000", {}, [(image[::4, ::4], image) for image in images], (), "", [len(images)]
    )
    write_index(folder, {"subimages": len(images)}, [shard])
    return SubImages(folder)


@pytest.fixture
def noises(tmp_path):
    """Nine sub-images of noise, three of them ten times as strong."""
    make = np.random.default_rng(3)
    (tmp_path / "set").mkdir()
    strengths = [100 if number % 3 == 0 else 10 for number in range(9)]
    return a_set(tmp_path / "set", [make.integers(0, most, (64, 64, 3), np.uint8) for most in strengths])


def test_each_subimage_comes_once_and_those_with_detail_first(noises):
    orders = [list(in_random_order(noises, seed)) for seed in range(200)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    first = sum(order[0] % 3 == 0 for order in orders) / len(orders)
    assert first == pytest.approx(30 / 36, abs=0.1)  # three weigh 10, six weigh 1


def test_an_image_keeps_its_fine_colours():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 200  # red and blue columns, which 4:2:0 would mix
    decoded = np.asarray(Image.open(io.BytesIO(avif(stripes, 90))).convert("RGB")).astype(int)
    assert np.abs(decoded - stripes).mean() < 8


def test_the_command_fills_the_size_with_images_that_prepare_reads(command, noises, tmp_path):
    result = command(
        "-m", "training.data.compress", "--train_dir", noises.folder, "--out", tmp_path / "small", "--megabytes", 0.03
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    files = list_images([tmp_path / "small"])
    size = sum(path.stat().st_size for path in files)
    assert 0 < size <= 30_000
    assert f"{len(files)} of 9 sub-images" in result.stdout
    number = int(files[0].stem.removeprefix("subimage_"))
    assert np.abs(read_photograph(files[0]).astype(int) - noises.pair(number)[1]).mean() < 8


def test_a_size_below_one_image_is_refused(command, noises, tmp_path):
    result = command(
        "-m", "training.data.compress", "--train_dir", noises.folder, "--out", tmp_path / "small", "--megabytes", 0.0001
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: --megabytes 0.0001: too few")
