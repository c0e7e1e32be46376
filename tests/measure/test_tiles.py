"""utils/measure/tiles.py: tiles are what the whole image would have been, and are taken only when memory runs out."""

import pytest
import torch

from models.plainusr import PlainUSR
from models.training.nanosr import NanoSR_train
from utils.measure.tiles import OVERLAP, forward_in_tiles, forward_within_memory, reach


class Small(torch.nn.Module):
    """Restores by NanoSR, but has memory for few pixels only."""

    def __init__(self, pixels):
        super().__init__()
        self.network, self.pixels, self.calls = NanoSR_train().fuse().eval(), pixels, 0

    def forward(self, x):
        self.calls += 1
        if x.shape[2] * x.shape[3] > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(x)


@pytest.mark.parametrize("size", [(70, 90), (33, 129), (64, 64)])
def test_tiles_leave_no_seam(size):
    network = NanoSR_train().fuse().eval()
    lr = torch.rand(1, 3, *size)
    with torch.no_grad():
        whole = network(lr)
    tiled, runtime_ms, _ = forward_in_tiles(network, lr, 32)
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-5 * whole.abs().max())
    assert runtime_ms > 0


def test_too_small_an_overlap_would_show():
    network = NanoSR_train().fuse().eval()
    lr = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        whole = network(lr)
    assert not torch.allclose(forward_in_tiles(network, lr, 32, 4)[0], whole, rtol=0, atol=1e-5 * whole.abs().max())


def test_whole_image_is_tried_first():
    model = Small(10**9)
    assert forward_within_memory(model, torch.rand(1, 3, 80, 80))[2] is None
    assert model.calls == 1


def test_largest_tiles_that_fit_are_taken():
    model = Small(200 * 200)
    sr, _, tile = forward_within_memory(model, torch.rand(1, 3, 200, 300))
    assert sr.shape == (1, 3, 800, 1200)
    assert tile == 128


def test_memory_for_nothing_raises():
    with pytest.raises(torch.OutOfMemoryError):
        forward_within_memory(Small(100), torch.rand(1, 3, 80, 80))


class Blurred(torch.nn.Module):
    """Nearest enlargement of a mean over a square of so many pixels to each side; of all of them with None."""

    def __init__(self, sides):
        super().__init__()
        self.sides = sides

    def forward(self, x):
        if self.sides is None:
            x = x + x.mean(dim=(2, 3), keepdim=True)
        else:
            x = torch.nn.functional.avg_pool2d(x, 2 * self.sides + 1, stride=1, padding=self.sides)
        return torch.nn.functional.interpolate(x, scale_factor=4)


@pytest.mark.parametrize(("sides", "expected"), [(0, 0), (3, 3), (40, 40), (None, 64)])
def test_reach_is_how_far_a_network_looks(sides, expected):
    assert reach(Blurred(sides), "cpu") == expected


def test_nanosr_looks_no_farther_than_tiles_overlap():
    network = NanoSR_train().fuse().eval()
    assert reach(network, "cpu") <= OVERLAP


def test_attention_of_plainusr_looks_farther():
    assert reach(PlainUSR().eval(), "cpu") > OVERLAP
