"""utils/measure/counting.py: what torch's dispatcher sees, worked out on paper."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.measure.counting import watched_pass


def test_multiply_accumulates_of_convolutions_and_products():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(20, 5))
    seen = watched_pass(network, torch.rand(1, 3, 4, 5))
    assert seen.macs == 8 * 3 * 9 * 20 + 8 * 20 * 5


def test_strided_grouped_and_transposed_convolutions():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), nn.ConvTranspose2d(4, 2, 2, stride=2))
    assert watched_pass(network, torch.rand(1, 4, 8, 8)).macs == 4 * 2 * 9 * 16 + 4 * 2 * 4 * 16


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each look takes 0.01 ms, and a network as much as it says."""
    now = SimpleNamespace(s=0.0)

    def look():
        now.s += 1e-5
        return now.s

    monkeypatch.setattr("utils.measure.counting.time", SimpleNamespace(perf_counter=look))
    return now


class Chain(nn.Module):
    """Many small operators, and `seconds` by a clock for something that is none."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        for _ in range(500):
            x = x + 1
        self.clock.s += self.seconds
        return x


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_time_outside_of_operators_is_what_is_none_of_theirs(clock, seconds):
    """What the watching takes for each operator, 5 ms of it here, is not taken for something else."""
    seen = watched_pass(Chain(clock, seconds), torch.rand(1, 3, 8, 8))
    assert seen.macs == 0
    assert seen.outside_ms == pytest.approx(1000 * seconds, abs=0.1)
    assert seen.operators_ms == pytest.approx(500 * 0.01)
