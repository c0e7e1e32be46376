"""utils/measure/memory.py: the peak is what is in use at once, whatever was in use before, in every process."""

import pytest
import torch

from utils.measure.memory import cpu_peak_mib
from utils.zoo.registry import entry_from_file

NETWORK = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        for mib in (8, 24, 12, 32, 20, 28) if x.shape[2] > 16 else ():
            torch.ones(mib * 2**18), torch.ones(1000)
        return F.interpolate(x, scale_factor=4)
"""


def test_peak_is_what_is_in_use_at_once(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    torch.save({"scale": torch.ones(1)}, tmp_path / "w.pth")
    entry = entry_from_file(tmp_path / "net.py", "Net", [], tmp_path / "w.pth")
    peaks = [cpu_peak_mib(entry, (1, 3, 64, 64)) for _ in range(2)]
    assert peaks == pytest.approx([32, 32], abs=2)
