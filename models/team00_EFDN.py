"""EFDN (baseline of the NTIRE 2025 Efficient SR challenge), inference form: x4 super-resolution.

Edge-enhanced Feature Distillation Network (Wang, CVPRW 2022) with its edge-enhanced convolutions already collapsed to
plain 3x3 ones. Imports only torch. Shapes in comments: B batch, H x W the size of the LR image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 48
ATTENTION_CHANNELS = 12
SCALE = 4


class Conv1x1PReLU(nn.Module):
    """1x1 convolution and PReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, channels, 1)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1x1(x))


class RepConvPReLU(nn.Module):
    """The 3x3 convolution that an edge-enhanced one collapses to, and PReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.rep_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.rep_conv(x))


class ESA(nn.Module):
    """Enhanced spatial attention (RFANet, Liu et al., 2020): a mask from a wide, cheap view of the features."""

    def __init__(self, channels: int, f: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, f, 1)
        self.conv_f = nn.Conv2d(f, f, 1)
        self.conv2 = nn.Conv2d(f, f, 3, stride=2)
        self.conv_max = nn.Conv2d(f, f, 3, padding=1)
        self.conv3 = nn.Conv2d(f, f, 3, padding=1)
        self.conv3_ = nn.Conv2d(f, f, 3, padding=1)
        self.conv4 = nn.Conv2d(f, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        c1_ = self.conv1(x)  # B x f x H x W
        pooled = F.max_pool2d(self.conv2(c1_), 7, stride=3)  # B x f x about H/6 x W/6
        c3 = self.conv3_(F.relu(self.conv3(F.relu(self.conv_max(pooled)))))
        c3 = F.interpolate(c3, x.shape[2:], mode="bilinear", align_corners=False)  # B x f x H x W
        return x * torch.sigmoid(self.conv4(c3 + self.conv_f(c1_)))


class Cell(nn.Module):
    """Distillation: four views of growing depth, half the channels of each, fused and attended to."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv1x1PReLU(channels)
        self.conv2 = RepConvPReLU(channels)
        self.conv3 = RepConvPReLU(channels)
        self.branch = nn.ModuleList(nn.Conv2d(channels, channels // 2, 1) for _ in range(4))
        self.fuse = nn.Conv2d(2 * channels, channels, 1)
        self.att = ESA(channels, ATTENTION_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        o1 = self.conv1(x)
        o2 = self.conv2(o1)
        o3 = self.conv3(o2)
        distilled = [conv(view) for conv, view in zip(self.branch, (x, o1, o2, o3), strict=True)]
        return self.att(self.fuse(torch.cat(distilled, dim=1))) + x


class EFDN(nn.Module):
    """EFDN as it runs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, clamped to [0, 1]; H and W at least 15."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.cells = nn.ModuleList(Cell(CHANNELS) for _ in range(4))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * CHANNELS, CHANNELS, 1) for _ in range(3))
        self.tail = nn.Sequential(nn.Conv2d(CHANNELS, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, lr: Tensor) -> Tensor:
        head = self.head(lr)  # B x 48 x H x W, as all that follows
        out1 = self.cells[0](head)
        out2 = self.cells[1](out1)
        out3 = self.cells[2](self.local_fuse[0](torch.cat([out1, out2], dim=1)))
        out4 = self.cells[3](self.local_fuse[1](torch.cat([out2, out3], dim=1)))
        f4 = self.local_fuse[2](torch.cat([out2, out4], dim=1))
        return self.tail(f4 + head).clamp(0, 1)  # B x 3 x 4H x 4W
