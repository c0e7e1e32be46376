"""SPAN's training form: each 3x3 convolution but the upsampler as 1x1, 3x3, 1x1 beside a 1x1.

Source: Swift Parameter-free Attention Network (Wan et al., CVPRW 2024).
"""

from torch import nn

from models.team00_SPAN import SPAN
from models.training.reparam import Reparameterized, RepMBConv


class SPAN_train(Reparameterized, SPAN):
    """SPAN with re-parameterized convolutions: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1].

    `form` is "collapsed" (the plain network, its kernels composed in each pass) or "branches" (each a module call).
    """

    def __init__(self, form: str = "collapsed"):
        super().__init__()
        self.grow(grown, SPAN, form)


def grown(name: str, conv: nn.Conv2d) -> nn.Module | None:
    """Return the branches of the convolution inside a CollapsedConv, None for any other convolution."""
    return RepMBConv(conv.in_channels, conv.out_channels) if name.endswith(".eval_conv") else None
