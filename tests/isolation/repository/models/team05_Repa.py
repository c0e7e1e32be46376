from torch import nn

from models.team01_Plain import Plain


class Branch(nn.Conv2d):
    deployed = False

    def switch_deploy(self):
        self.deployed = True


class Repa(Plain):
    """Its convolution's weights lie in a branch until `repa()` moves them."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([Branch(3, 48, 3, padding=1, bias=False)])
        bias = self.conv.bias
        del self.conv
        self.conv = nn.Module()
        self.conv.bias = bias

    def repa(self):
        conv = nn.Conv2d(3, 48, 3, padding=1)
        conv.weight, conv.bias = self.branches[0].weight, self.conv.bias
        self.conv = conv
        del self.branches
