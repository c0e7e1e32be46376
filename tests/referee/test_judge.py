"""utils/referee/judge.py: what the judge measures of a contestant from outside."""

import math

import pytest
import torch

from utils.measure.memory import cpu_peak_mib
from utils.referee.judge import Contestant, are_the_same
from utils.zoo.registry import find_entry, read_registry


def test_memory_is_what_the_network_takes(tmp_path):
    entry, shape = find_entry(126, read_registry()), (1, 3, 64, 64)
    with Contestant(entry, torch.device("cpu"), tmp_path / "log") as contestant:
        assert contestant.cpu_peak_mib(shape) == pytest.approx(cpu_peak_mib(entry, shape), abs=20)


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ([0.1, math.nan, math.inf], True),
        ([0.103, math.nan, math.inf], True),
        ([0.105, math.nan, math.inf], False),
        ([math.nan, math.nan, math.inf], False),
        ([0.1, 0.0, math.inf], False),
        ([0.1, math.nan, -math.inf], False),
    ],
)
def test_values_that_are_no_numbers_are_compared_too(now, same):
    before = torch.tensor([0.1, math.nan, math.inf])
    assert are_the_same(torch.tensor(now), before, 0.004) == same


def test_transfers_grow_with_the_image(tmp_path):
    with Contestant(find_entry(126, read_registry()), torch.device("cpu"), tmp_path / "log") as contestant:
        pixels, seconds = contestant.transfers
        assert contestant.transfer_s(64, 64) == seconds[0]
        assert contestant.transfer_s(512, 512) == seconds[-1]
        assert contestant.transfer_s(512, 1024) == 2 * seconds[-1]
        middle = (pixels[1] + pixels[2]) // 2
        assert contestant.transfer_s(1, middle) == pytest.approx((seconds[1] + seconds[2]) / 2)
