"""utils/measure/architecture.py: blocks, their channels, and which outputs reach them."""

import torch
from torch import nn

from tests.helpers import CPU
from utils.measure.architecture import INPUT, traced_architecture


class Skips(nn.Module):
    """Adds the input's features after the body, and the enlarged input at the end."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.tail = nn.Sequential(nn.Conv2d(16, 48, 1), nn.PixelShuffle(4))

    def forward(self, x):
        first = y = self.head(x)
        for conv in self.body:
            y = conv(y).relu_()
        return self.tail(torch.cat([first, y], 1)) + nn.functional.interpolate(x, scale_factor=4)


def test_data_flow_is_that_of_the_code():
    architecture = traced_architecture(Skips().requires_grad_(False), CPU, 255.0)
    seen = [
        (block.name, block.in_channels, block.out_channels, block.scale, block.sources) for block in architecture.blocks
    ]
    assert seen == [
        ("head", 3, 8, 1, [INPUT]),
        ("body.0", 8, 8, 1, [0]),
        ("body.1", 8, 8, 1, [1]),
        ("body.2", 8, 8, 1, [2]),
        ("tail.0", 16, 48, 1, [0, 3]),
        ("tail.1", 48, 3, 4, [4]),
    ]
    assert architecture.sources == [INPUT, 5]
    assert (architecture.blocks[0].params, architecture.blocks[0].convs) == (8 * 28, 1)


def test_network_is_left_as_it_was():
    network = Skips().eval()
    traced_architecture(network, CPU)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Cut(nn.Module):
    """Leaves autograd's graph between its two blocks."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Upsample(scale_factor=4)

    def forward(self, x):
        return self.two(self.one(x).detach())


def test_where_the_graph_is_cut_the_call_before_is_taken():
    architecture = traced_architecture(Cut(), CPU)
    assert [block.sources for block in architecture.blocks] == [[INPUT], [0]]
    assert architecture.sources == [1]
