"""PlainUSR x4, general size, inference form (Wang et al., ACCV 2024), 333 k parameters. Imports only torch.

Shapes in comments: B batch, H x W the size of the LR image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 67  # 64 that the first block works on, and 3 that pass by every block
ATTENTION_CHANNELS = 16
SCALE = 4


class SoftPool(nn.Module):
    """Average of windows of 7 x 7, stride 3, in which larger values weigh exponentially more."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.exp(x)
        return F.avg_pool2d(weight * x, 7, stride=3) / F.avg_pool2d(weight, 7, stride=3)


class LocalAttention(nn.Module):
    """Local importance-based attention: a coarse mask of the block, sharpened by a gate from its first channel."""

    def __init__(self, channels: int, f: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, f, 1),
            SoftPool(),
            nn.Conv2d(f, f, 3, stride=2, padding=1),
            nn.Conv2d(f, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = F.interpolate(self.body(x), x.shape[2:], mode="bilinear", align_corners=False)
        return x * mask * torch.sigmoid(x[:, :1])


class Block(nn.Module):
    """Two 3x3 convolutions and local attention on the first `channels` channels; the others pass by."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.05),
            nn.Conv2d(channels, channels, 3, padding=1),
            LocalAttention(channels, ATTENTION_CHANNELS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x[:, : self.channels]), x[:, self.channels :]], dim=1)


class PlainUSR(nn.Module):
    """PlainUSR as it runs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1]; H and W at least 7."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.block1 = Block(64)
        self.block2 = Block(48)
        self.blockm = Block(32)
        self.block3 = Block(48)
        self.block4 = Block(64)
        self.tail = nn.Sequential(nn.Conv2d(CHANNELS, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, lr: Tensor) -> Tensor:
        f = self.head(lr)  # B x 67 x H x W, as all that follows
        f = self.block4(self.block3(self.blockm(self.block2(self.block1(f)))))
        return self.tail(f)  # B x 3 x 4H x 4W
