"""PlainUSR's training form: the two 3x3 convolutions of each block as gated RepMBConvs.

Source: PlainUSR (Wang et al., ACCV 2024).
"""

import re

from torch import nn

from models.plainusr import PlainUSR
from models.training.reparam import GatedRepMBConv, Reparameterized


class PlainUSR_train(Reparameterized, PlainUSR):
    """PlainUSR with RepMBConvs: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1]; H and W at least 7.

    `form` is "collapsed" (the plain network, its kernels composed in each pass) or "branches" (each a module call).
    """

    def __init__(self, form: str = "collapsed"):
        super().__init__()
        self.grow(grown, PlainUSR, form)


def grown(name: str, conv: nn.Conv2d) -> nn.Module | None:
    """Return the branches of the first and the third layer of a block's body."""
    return GatedRepMBConv(conv.in_channels) if re.fullmatch(r"block\w\.body\.[02]", name) else None
