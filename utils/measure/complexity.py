"""Parameters, FLOPs, activations and convolution count of a network, as the challenge counts them."""

import logging
from collections import Counter
from itertools import chain
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_count, get_shape
from torch import Tensor, nn

from utils.record import Counts

INPUT_SHAPE = (1, 3, 256, 256)  # of the protocol


@torch.no_grad()
def measure_complexity(model: nn.Module, input_shape: tuple[int, ...] = INPUT_SHAPE) -> Counts:
    """Count a network on an input of `input_shape` (1 x 3 x H x W), on the network's device.

    FLOPs: fvcore's `FlopCountAnalysis` total. Activations and convolutions: every call of an `nn.Conv2d` or
    `nn.ConvTranspose2d` module.
    """
    device = next(chain(model.parameters(), model.buffers(), [torch.empty(0)])).device
    lr = torch.rand(input_shape, device=device)
    activations, convs = _count_convolutions(model, lr)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counts(params=params, flops=_count_flops(model, lr), activations=activations, convs=convs)


def _count_convolutions(model: nn.Module, lr: Tensor) -> tuple[int, int]:
    sizes: list[int] = []
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


@torch.no_grad()
def traced_macs(model: nn.Module, lr: Tensor) -> int:
    """Return the multiply-accumulates of a trace, including convolutions that the protocol's counter leaves out."""
    return _count_flops(model, lr, {"aten::_convolution_mode": _convolution_mode})


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count a convolution of padding='same', whose operator fvcore does not know."""
    x, weight, out = (get_shape(value) for value in (*inputs[:2], outputs[0]))
    return Counter({"conv": conv_flop_count(x, weight, out)})


def _count_flops(model: nn.Module, lr: Tensor, handles: dict[str, Any] | None = None) -> int:
    # fvcore lists every operator it does not count (additions, activations) on each call.
    loggers = [logging.getLogger(name) for name in ("fvcore.nn.jit_analysis", "fvcore.common.checkpoint")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        analysis = FlopCountAnalysis(model, lr).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**(handles or {}))
        return int(analysis.total())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
