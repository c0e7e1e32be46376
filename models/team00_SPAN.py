"""SPAN (baseline of the NTIRE 2026 Efficient SR challenge), inference form: x4 super-resolution.

Swift Parameter-free Attention Network (Wan et al., CVPRW 2024), with 28 channels and its convolutions already
collapsed to plain 3x3 ones. Imports only torch. Shapes in comments: B batch, H x W the size of the LR image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 28
SCALE = 4
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
IMG_RANGE = 255.0


class CollapsedConv(nn.Module):
    """The 3x3 convolution that a re-parameterized one collapses to."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.eval_conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.eval_conv(x)


class SPAB(nn.Module):
    """Swift parameter-free attention block: the last convolution's output also weighs the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.c1_r = CollapsedConv(channels, channels)
        self.c2_r = CollapsedConv(channels, channels)
        self.c3_r = CollapsedConv(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (attended features, activated output of the first convolution), each B x C x H x W like `x`."""
        o1 = F.silu(self.c1_r(x))
        o3 = self.c3_r(F.silu(self.c2_r(o1)))
        return (o3 + x) * (torch.sigmoid(o3) - 0.5), o1


class SPAN(nn.Module):
    """SPAN as it runs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1] (not clamped)."""

    mean: Tensor
    block_1: SPAB
    block_2: SPAB
    block_3: SPAB
    block_4: SPAB
    block_5: SPAB
    block_6: SPAB

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_1 = CollapsedConv(3, CHANNELS)
        for number in range(1, 7):
            self.add_module(f"block_{number}", SPAB(CHANNELS))
        self.conv_2 = CollapsedConv(CHANNELS, CHANNELS)
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, lr: Tensor) -> Tensor:
        f0 = self.conv_1((lr - self.mean) * IMG_RANGE)  # B x 28 x H x W, as all that follows
        out_1, _ = self.block_1(f0)
        out = out_1
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            out, _ = block(out)
        out_6, o1 = self.block_6(out)
        f = self.conv_cat(torch.cat([f0, self.conv_2(out_6), out_1, o1], dim=1))
        return self.upsampler(f)  # B x 3 x 4H x 4W
