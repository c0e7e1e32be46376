"""models/team00_EFDN.py: the baseline's published complexity and quality."""

import pytest
import torch

from models.team00_EFDN import EFDN
from tests.golden import benchmark_psnr
from utils.checkpoints import load_state_dict, load_strictly
from utils.complexity import measure_complexity


def test_complexity_is_the_baselines():
    counts = measure_complexity(EFDN().eval())
    assert (counts.params, counts.flops, counts.activations, counts.convs) == (276_192, 16_703_470_848, 111_116_736, 65)


@pytest.mark.parametrize("size", [(15, 15), (17, 40)])
def test_output_is_four_times_as_large_and_clamped(size):
    sr = EFDN()(torch.rand(1, 3, *size) * 9)
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert sr.min() >= 0
    assert sr.max() <= 1


@pytest.mark.parametrize(("benchmark", "expected"), [("Set5", 30.1754), ("Set14", 26.7749)])
def test_published_weights_reach_the_golden_psnr(shared, benchmark, expected):
    model = EFDN().eval()
    path = shared / "official" / "team00_EFDN.pth"
    load_strictly(model, load_state_dict(path), path)
    assert benchmark_psnr(model, shared, benchmark) == pytest.approx(expected, abs=1e-3)
