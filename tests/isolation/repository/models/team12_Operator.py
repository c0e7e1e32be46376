import torch

from models.team01_Plain import Plain


class Operator(Plain):
    def forward(self, x):
        return torch.ops.selective_scan.forward(x)
