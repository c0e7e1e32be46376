"""utils/measure/complexity.py against counts done on paper."""

import logging

import torch
from torch import nn

from utils.measure.complexity import measure_complexity
from utils.record import Counts


class Twice(nn.Module):
    """A shared 3x3 convolution called twice, then a transposed one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 5, 4, stride=4, bias=False)

    def forward(self, x):
        return self.up(torch.relu(self.conv(self.conv(x))))


def test_counts_calls_not_modules():
    counts = measure_complexity(Twice(), (1, 3, 8, 10))
    pixels = 80
    assert counts == Counts(
        params=(3 * 3 * 9 + 3) + 3 * 5 * 16,
        flops=2 * pixels * 3 * 3 * 9 + pixels * 3 * 5 * 16,
        activations=2 * 3 * pixels + 5 * 16 * pixels,
        convs=3,
    )


def test_leaves_the_model_and_the_loggers_as_they_were():
    model = Twice()
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    logger.setLevel(logging.INFO)
    measure_complexity(model, (1, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())
    assert logger.level == logging.INFO
