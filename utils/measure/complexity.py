"""Parameters, FLOPs, activations and convolution count of a network, as the challenge counts them."""

import logging
from dataclasses import dataclass
from itertools import chain

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

INPUT_SHAPE = (1, 3, 256, 256)  # of the protocol


@dataclass(frozen=True)
class Complexity:
    """Exact counts: `flops` are multiply-accumulates, `activations` output elements of convolution modules."""

    params: int
    flops: int
    activations: int
    convs: int


@torch.no_grad()
def measure_complexity(model, input_shape=INPUT_SHAPE):
    """Count a network on an input of `input_shape` (1 x 3 x H x W), on the network's device.

    FLOPs: fvcore's `FlopCountAnalysis` total. Activations and convolutions: every call of an `nn.Conv2d` or
    `nn.ConvTranspose2d` module.
    """
    device = next(chain(model.parameters(), model.buffers(), [torch.empty(0)])).device
    lr = torch.rand(input_shape, device=device)
    activations, convs = _count_convolutions(model, lr)
    return Complexity(sum(p.numel() for p in model.parameters()), _count_flops(model, lr), activations, convs)


def _count_convolutions(model, lr):
    sizes = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    try:
        model(lr)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes), len(sizes)


def _count_flops(model, lr):
    # fvcore lists every operator it does not count (additions, activations) on each call.
    loggers = [logging.getLogger(name) for name in ("fvcore.nn.jit_analysis", "fvcore.common.checkpoint")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        analysis = FlopCountAnalysis(model, lr).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
