import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """A bicubic upscaling and what one convolution adds to it."""

    def __init__(self, num_in_ch=3, num_out_ch=3, upscale=4):
        super().__init__()
        self.conv = nn.Conv2d(num_in_ch, num_out_ch * upscale**2, 3, padding=1)
        self.up = nn.PixelShuffle(upscale)

    def forward(self, x):
        return F.interpolate(x, scale_factor=4, mode="bicubic") + self.up(self.conv(x))
