"""training/optim/losses.py: against the formulas in NumPy."""

import numpy as np
import pytest
import torch

from training.optim.losses import LOSSES


def test_losses_are_their_formulas():
    make = np.random.default_rng(5)
    sr, hr = make.random((2, 3, 8, 12)), make.random((2, 3, 8, 12))
    spectrum = np.fft.rfft2(sr - hr, norm="ortho")
    expected = {
        "l1": np.abs(sr - hr).mean(),
        "l2": ((sr - hr) ** 2).mean(),
        "rmse": np.sqrt(((sr - hr) ** 2).mean((1, 2, 3)) + 1e-6).mean(),
        "charbonnier": np.sqrt((sr - hr) ** 2 + 1e-6).mean(),
        "l1+frequency": np.abs(sr - hr).mean() + 0.1 * np.abs([spectrum.real, spectrum.imag]).mean(),
    }
    actual = {name: loss(torch.from_numpy(sr), torch.from_numpy(hr)).item() for name, loss in LOSSES.items()}
    assert actual == pytest.approx(expected)
