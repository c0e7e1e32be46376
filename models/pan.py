"""PAN x4: Pixel Attention Network (Zhao et al., ECCVW 2020), 272 k parameters. Imports only torch.

Shapes in comments: B batch, H x W the size of the LR image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, UP_CHANNELS, BLOCKS = 40, 24, 16


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class PixelAttention(nn.Module):
    """Weigh every value by the sigmoid of a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class PAConv(nn.Module):
    """Two 3x3 convolutions with pixel attention in between, computed from the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.k2 = nn.Conv2d(channels, channels, 1)
        self.k3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))


class SCPA(nn.Module):
    """Self-calibrated convolution with pixel attention: half the channels plain, half attended, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1_a = nn.Conv2d(channels, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(channels, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False))
        self.PAConv = PAConv(half)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = lrelu(self.k1(lrelu(self.conv1_a(x))))
        b = lrelu(self.PAConv(lrelu(self.conv1_b(x))))
        return self.conv3(torch.cat([a, b], dim=1)) + x


class PAN(nn.Module):
    """PAN as it runs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1] (not clamped)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.SCPA_trunk = nn.Sequential(*(SCPA(CHANNELS) for _ in range(BLOCKS)))
        self.trunk_conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.upconv1 = nn.Conv2d(CHANNELS, UP_CHANNELS, 3, padding=1)
        self.att1 = PixelAttention(UP_CHANNELS)
        self.HRconv1 = nn.Conv2d(UP_CHANNELS, UP_CHANNELS, 3, padding=1)
        self.upconv2 = nn.Conv2d(UP_CHANNELS, UP_CHANNELS, 3, padding=1)
        self.att2 = PixelAttention(UP_CHANNELS)
        self.HRconv2 = nn.Conv2d(UP_CHANNELS, UP_CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(UP_CHANNELS, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        first = self.conv_first(lr)  # B x 40 x H x W
        f = first + self.trunk_conv(self.SCPA_trunk(first))
        f = self.upconv1(F.interpolate(f, scale_factor=2, mode="nearest"))  # B x 24 x 2H x 2W
        f = lrelu(self.HRconv1(lrelu(self.att1(f))))
        f = self.upconv2(F.interpolate(f, scale_factor=2, mode="nearest"))  # B x 24 x 4H x 4W
        f = lrelu(self.HRconv2(lrelu(self.att2(f))))
        return self.conv_last(f) + F.interpolate(lr, scale_factor=4, mode="bilinear", align_corners=False)
