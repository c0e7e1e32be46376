"""Properties over arbitrary shapes, types and bytes: readers refuse in one line or give what they promise."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import photograph
from utils.ahead import ahead
from utils.data.images import bicubic_downscale, crop_to_multiple, encode_png, read_rgb, to_image, to_tensor
from utils.errors import HarnessError
from utils.evaluate.distributed import World, interleave
from utils.evaluate.metrics import SHAVE, WINDOW, psnr, ssim
from utils.measure.tiles import forward_in_tiles
from utils.protocol import SCALE
from utils.record import read_results
from utils.zoo.checkpoints import load_state_dict

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.integers(1, 70)


def refused_or(function, path, promised):
    """`function(path)` raises a one-line HarnessError that names the file, or returns what is promised."""
    value = complaint = None
    try:
        value = function(path)
    except HarnessError as error:
        complaint = str(error)
    if complaint is None:
        assert promised(value)
    else:
        assert str(path) in complaint
        assert "\n" not in complaint


def is_rgb(image):
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@quick
@given(data=st.data())
def test_damaged_images_are_refused_or_read_as_rgb(tmp_path, suffix, data):
    whole = cv2.imencode(suffix, photograph(24, 32))[1].tobytes()
    cut = data.draw(st.integers(0, len(whole)))
    damaged = bytearray(whole[:cut])
    for position in data.draw(st.lists(st.integers(0, max(cut - 1, 0)), max_size=4)) if cut else []:
        damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(damaged)
    refused_or(read_rgb, path, is_rgb)


@quick
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_image_no_checkpoint_no_results(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused_or(read_rgb, path, is_rgb)
    refused_or(load_state_dict, path, lambda state: all(isinstance(v, torch.Tensor) for v in state.values()))
    refused_or(read_results, path, lambda records: isinstance(records, dict))


@quick
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_hold_tensors(tmp_path, data):
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.arange(12.0).view(3, 4)}, path)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refused_or(load_state_dict, path, lambda state: all(isinstance(v, torch.Tensor) for v in state.values()))


@quick
@given(
    height=sizes,
    width=sizes,
    dtype=st.sampled_from([np.uint8, np.uint16]),
    channels=st.sampled_from([None, 3, 4]),
)
def test_any_png_is_read_as_rgb_or_named(tmp_path, height, width, dtype, channels):
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    path = tmp_path / "x.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    if dtype == np.uint8 and channels != 4:
        read = read_rgb(path)
        assert read.shape == (height, width, 3)
        assert np.array_equal(read[..., 0], image if channels is None else image[..., 2])
    else:
        with pytest.raises(HarnessError, match=r"x\.png"):
            read_rgb(path)


@quick
@given(height=sizes, width=sizes, seed=st.integers(0, 99), data_range=st.sampled_from([1.0, 255.0]))
def test_images_survive_files_and_tensors(tmp_path, height, width, seed, data_range):
    image = photograph(height, width, seed)
    (tmp_path / "x.png").write_bytes(encode_png(image))
    assert np.array_equal(read_rgb(tmp_path / "x.png"), image)
    assert np.array_equal(to_image(to_tensor(image, data_range), data_range), image)


@quick
@given(height=st.integers(9, 70), width=st.integers(9, 70), seed=st.integers(0, 99))
def test_metrics_are_symmetric_and_bounded(height, width, seed):
    a, b = photograph(height, width, seed), photograph(height, width, seed + 1)
    assert psnr(a, b) == psnr(b, a) > 0
    assert psnr(a, a) == float("inf")
    if min(height, width) >= 2 * SHAVE + WINDOW:
        assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
        assert -1 <= ssim(a, b) < ssim(a, a) <= 1 + 1e-12
    else:
        with pytest.raises(ValueError, match="smaller than the"):
            ssim(a, b)


@quick
@given(height=st.integers(4, 70), width=st.integers(4, 70), value=st.integers(0, 255))
def test_downscaling_keeps_flat_images_and_quarters_the_size(height, width, value):
    flat = crop_to_multiple(np.full((height, width, 3), value, np.uint8))
    small = bicubic_downscale(flat)
    assert small.shape == (height // SCALE, width // SCALE, 3)
    assert (small == value).all()


@quick
@given(height=sizes, width=sizes, side=st.integers(1, 40), overlap=st.integers(0, 8))
def test_tiles_cover_every_pixel_once(height, width, side, overlap):
    enlarge = torch.nn.Upsample(scale_factor=SCALE, mode="nearest")
    lr = torch.rand(1, 3, height, width)
    assert torch.equal(forward_in_tiles(enlarge, lr, side, overlap)[0], enlarge(lr))


@quick
@given(items=st.lists(st.integers(), max_size=30), world=st.integers(1, 9), limit=st.integers(0, 5))
def test_order_is_kept_by_shards_and_threads(items, world, limit):
    assert interleave([items[rank::world] for rank in range(World(0, world).size)]) == items
    assert list(ahead(None, str, items, limit)) == [str(item) for item in items]


def test_paths_are_told_as_they_were_given():
    with pytest.raises(HarnessError, match=r"^nowhere/x\.png: cannot be read"):
        read_rgb(Path("nowhere/x.png"))
