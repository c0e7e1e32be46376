"""utils/measure/precision.py: the number type that is fast here, and what another one costs."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import CPU
from utils.measure import precision


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_is_taken_where_the_device_has_it(monkeypatch, has_it, expected):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has_it)
    assert precision.fast_precision(CPU) == expected


@pytest.mark.parametrize(("times", "cost"), [(7.0, 7.0), (0.5, None), (1.1, None)])
def test_what_emulation_costs_is_told(monkeypatch, times, cost):
    """By a clock on which a float32 convolution takes a second."""
    now = [0.0]

    def convolve(x, weight, padding):
        now[0] += 1.0 if x.dtype == torch.float32 else times

    monkeypatch.setattr(precision.F, "conv2d", convolve)
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    line = precision.cost_line(CPU, "bfloat16")
    assert line is None if cost is None else f"takes {cost:.1f} times as long as in float32" in line


def test_float32_costs_nothing_and_is_not_timed(monkeypatch):
    monkeypatch.setattr(precision, "convolution_cost", lambda *arguments: 1 / 0)
    assert precision.cost_line(CPU, "float32") is None
