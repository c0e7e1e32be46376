"""NanoSR's training form: the fused network with each 3x3 convolution (but the upsampler) grown into linear branches.

Source: NanoSR's factsheet in the NTIRE 2025 Efficient SR report (Ren et al., CVPRW 2025).
"""

from functools import partial

from torch import nn

from models.team07_NanoSR import NanoSR_inference
from models.training.reparam import GatedRepMBConv, Reparameterized, RepMBConv


class NanoSR_train(Reparameterized, NanoSR_inference):
    """NanoSR with re-parameterized convolutions: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1].

    `form` is "collapsed" (the fused network, its kernels composed in each pass) or "branches" (each a module call).
    """

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, form: str = "collapsed"):
        super().__init__(num_in_ch, num_out_ch)
        self.grow(grown, partial(NanoSR_inference, num_in_ch, num_out_ch), form)


def grown(name: str, conv: nn.Conv2d) -> nn.Module | None:
    """Return the branches of every convolution but conv_cat and the upsampler; the feature extractors' are gated."""
    if name.endswith("feature_extractor.conv"):
        return GatedRepMBConv(conv.in_channels)
    return RepMBConv(conv.in_channels, conv.out_channels) if name.endswith(".conv") else None
