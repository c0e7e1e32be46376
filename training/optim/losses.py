"""Losses between images in [0, 1], B x 3 x H x W float32, by the names that recipes have for them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def charbonnier_loss(sr: Tensor, hr: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Return the mean of sqrt((sr - hr)^2 + epsilon^2): L1 that is smooth near 0 (Lai et al., CVPR 2017)."""
    return ((sr - hr).square() + epsilon**2).sqrt().mean()


def l1_frequency_loss(sr: Tensor, hr: Tensor, weight: float = 0.1) -> Tensor:
    """Return L1 of images plus `weight` times that of their unitary 2-D Fourier transforms, real and imaginary.

    Source of such a weighted term: Cho et al., ICCV 2021.
    """
    difference = torch.view_as_real(torch.fft.rfft2(sr - hr, norm="ortho"))
    return F.l1_loss(sr, hr) + weight * difference.abs().mean()


def rmse_loss(sr: Tensor, hr: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Return the mean over patches of each patch's root mean square error, smooth near 0.

    PSNR is averaged over images, so an easy image counts as much as a hard one. L2 sees mostly the hard patches.
    """
    return ((sr - hr).square().mean((1, 2, 3)) + epsilon**2).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "rmse": rmse_loss,
    "charbonnier": charbonnier_loss,
    "l1+frequency": l1_frequency_loss,
}
