import torch

from models.team01_Plain import Plain


class Cuda(Plain):
    def __init__(self):
        super().__init__()
        self.shift = torch.zeros(1, 3, 1, 1, device="cuda")
        self.conv.cuda()

    def forward(self, x):
        return super().forward(x.cuda() + self.shift.to("cuda:0"))
