"""NanoSR (team 07, NTIRE 2025 Efficient SR), fused form: x4 super-resolution in 28 convolutions.

This file is the whole method at inference time and imports only torch, so it can be dropped into the
organizers' repository as it is. Shapes in comments: B batch, H x W the size of the LR image.

Sources: NanoSR factsheet in the NTIRE 2025 Efficient SR report (Ren et al., CVPRW 2025); the frame is
SPAN's (Wan et al., 2023), the attention PAN's (Zhao et al., 2020), the re-parameterization PlainUSR's
(Wang et al., 2024).
"""

import torch
from torch import Tensor, nn

CHANNELS = 48
SCALE = 4
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
IMG_RANGE = 255.0  # the features work on the scale of grey levels


class Conv3x3(nn.Module):
    """The convolution that a RepMBConv collapses to: 3x3, zero padding 1, with bias."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PixelAttention(nn.Module):
    """Three convolutions whose result both carries the features and, as a parameter-free sigmoid, weighs them."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_1 = Conv3x3(channels, channels)
        self.conv_2 = Conv3x3(channels, channels)
        self.conv_3 = Conv3x3(channels, channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (attended features, activated output of the first convolution), each B x C x H x W like `x`."""
        o1 = self.act(self.conv_1(x))
        o3 = self.conv_3(self.act(self.conv_2(o1)))
        return (o3 + x) * (torch.sigmoid(o3) - 0.5), o1


class RepBlock(nn.Module):
    """Feature extraction followed by pixel attention."""

    def __init__(self, channels: int):
        super().__init__()
        self.feature_extractor = Conv3x3(channels, channels)
        self.pixel_attention = PixelAttention(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pixel_attention(self.feature_extractor(x))


class NanoSR_inference(nn.Module):
    """NanoSR as it runs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1] (not clamped)."""

    mean: Tensor

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3):
        super().__init__()
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_1 = Conv3x3(num_in_ch, CHANNELS)
        self.block_1 = RepBlock(CHANNELS)
        self.block_2 = RepBlock(CHANNELS)
        self.block_3 = RepBlock(CHANNELS)
        self.block_4 = RepBlock(CHANNELS)
        self.block_5 = RepBlock(CHANNELS)
        self.block_6 = RepBlock(CHANNELS)
        self.conv_2 = Conv3x3(CHANNELS, CHANNELS)
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, num_out_ch * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, lr: Tensor) -> Tensor:
        f0 = self.conv_1((lr - self.mean) * IMG_RANGE)  # B x 48 x H x W, as all that follows
        out_1, _ = self.block_1(f0)
        out, _ = self.block_2(out_1)
        out, _ = self.block_3(out)
        out, _ = self.block_4(out)
        out, _ = self.block_5(out)
        out_6, o1 = self.block_6(out)
        f = torch.cat([f0, self.conv_2(out_6), out_1, o1], dim=1)  # B x 192 x H x W
        return self.upsampler(self.conv_cat(f))  # B x 3 x 4H x 4W
