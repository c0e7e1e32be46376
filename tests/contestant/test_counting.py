"""utils/contestant/counting.py: what torch's dispatcher sees, worked out on paper."""

import time

import pytest
import torch
from torch import nn

from utils.contestant.counting import watched_pass


class Hidden(nn.Module):
    """A convolution of which half of the time goes to something that is no operator."""

    def __init__(self, seconds):
        super().__init__()
        self.conv, self.seconds = nn.Conv2d(3, 8, 3, padding=1), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.conv(x)


def test_multiply_accumulates_of_convolutions_and_products():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(20, 5))
    seen = watched_pass(network, torch.rand(1, 3, 4, 5))
    assert seen["macs"] == 8 * 3 * 9 * 20 + 8 * 20 * 5


def test_strided_grouped_and_transposed_convolutions():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), nn.ConvTranspose2d(4, 2, 2, stride=2))
    assert watched_pass(network, torch.rand(1, 4, 8, 8))["macs"] == 4 * 2 * 9 * 16 + 4 * 2 * 4 * 16


def test_time_outside_of_operators_is_seen():
    seen = watched_pass(Hidden(0.2), torch.rand(1, 3, 64, 64))
    assert seen["outside_ms"] == pytest.approx(200, abs=100)
    assert seen["operators_ms"] > 0


def test_many_small_operators_are_not_taken_for_something_else():
    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(500):
                x = x + 1
            return x

    torch.set_grad_enabled(False)
    try:
        seen = min((watched_pass(Chain(), torch.rand(1, 3, 8, 8)) for _ in range(5)), key=lambda s: s["outside_ms"])
    finally:
        torch.set_grad_enabled(True)
    assert seen["macs"] == 0
    assert seen["outside_ms"] < 5
