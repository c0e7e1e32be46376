"""models/nanosr_amx.py: the same function as the plain fused network, where a processor has AMX."""

import pytest
import torch

from models.nanosr_amx import NanoSR_amx, arranged
from models.training.nanosr import NanoSR_train
from tests.helpers import benchmark_psnr
from utils.zoo.checkpoints import load_state_dict, load_strictly

pytestmark = pytest.mark.kernel("kernels/nanosr_amx.c")


@pytest.fixture
def amx():
    try:
        return NanoSR_amx().eval()
    except RuntimeError as error:
        pytest.skip(str(error))


def test_kernels_are_arranged_for_even_and_odd_pixels():
    weight = torch.arange(48 * 48 * 9, dtype=torch.float32).reshape(48, 48, 3, 3) % 256  # exact in bfloat16
    tiles = arranged(weight).float()
    assert tiles.shape == (2, 3, 3, 5, 16, 16, 2)
    for output, channel, row, column in ((0, 0, 0, 0), (47, 47, 2, 2), (17, 5, 1, 0), (33, 32, 0, 1)):
        value = weight[output, channel, row, column]
        for odd in (0, 1):
            step, at = divmod(16 * odd + 48 * column + channel, 32)
            assert tiles[odd, output // 16, row, step, at // 2, output % 16, at % 2] == value
    assert tiles[0, :, :, 4, 8:].abs().max() == tiles[1, :, :, 0, :8].abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 4), (13, 17), (32, 20), (5, 131)])
def test_differs_by_what_bfloat16_rounds(amx, size):  # a width of 131 takes more than two spans of pixels
    plain = NanoSR_train().fuse().eval()
    amx.load_state_dict(plain.state_dict(), strict=True)
    lr = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = plain(lr)
        assert (amx(lr) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_smaller_image_after_a_larger_one_finds_nothing_of_it(amx):
    amx.load_state_dict(NanoSR_train().fuse().state_dict())
    sizes = ((24, 70), (9, 10), (24, 70), (5, 200), (24, 70))
    torch.manual_seed(1)
    images = {size: torch.rand(1, 3, *size) for size in sizes}
    with torch.no_grad():
        first = {size: amx(lr).clone() for size, lr in images.items()}
        assert all(torch.equal(amx(images[size]), first[size]) for size in sizes)


def test_published_weights_keep_their_psnr(amx, shared):
    path = shared / "official" / "team07_NanoSR.pth"
    load_strictly(amx, load_state_dict(path), path)
    assert benchmark_psnr(amx, shared, "Set5") == pytest.approx(30.1985, abs=0.02)
