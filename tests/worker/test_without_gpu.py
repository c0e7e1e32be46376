"""utils/worker/without_gpu.py: whoever asks for a GPU gets the CPU, and whoever does not is left alone."""

import pytest
import torch
from torch import nn

from utils.worker.without_gpu import CudaOnCpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

ASKING = {
    "tensor.cuda()": lambda: torch.ones(2).cuda(),
    "tensor.cuda(0)": lambda: torch.ones(2).cuda(0, non_blocking=True),
    "tensor.to('cuda')": lambda: torch.ones(2).to("cuda"),
    "tensor.to('cuda:0', dtype)": lambda: torch.ones(2).to("cuda:0", torch.float64),
    "tensor.to(torch.device)": lambda: torch.ones(2).to(torch.device("cuda", 0)),
    "tensor.to(device=…)": lambda: torch.ones(2).to(device="cuda"),
    "a factory": lambda: torch.zeros(2, device="cuda"),
    "torch.tensor": lambda: torch.tensor([1.0], device=torch.device("cuda:0")),
    "module.cuda()": lambda: nn.Conv2d(1, 1, 1).cuda().weight,
    "module.to('cuda')": lambda: nn.Conv2d(1, 1, 1).to("cuda").weight,
    "a module made there": lambda: nn.Linear(2, 2, device="cuda").weight,
    "a context of a device": lambda: _in_context(),
}


def _in_context():
    with torch.device("cuda"):
        return torch.ones(2)


@pytest.mark.parametrize("way", ASKING)
def test_the_cpu_answers(way):
    with CudaOnCpu() as cuda:
        assert ASKING[way]().device.type == "cpu"
        assert cuda.used


def test_waiting_for_a_gpu_is_nothing():
    with CudaOnCpu() as cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert cuda.used


def test_what_asks_for_no_gpu_is_as_it_was():
    with CudaOnCpu() as cuda:
        assert nn.Conv2d(1, 1, 1).to(torch.float64).weight.dtype == torch.float64
        assert torch.ones(2, device="cpu").to("cpu").sum() == 2
        assert not cuda.used


def test_everything_is_as_it_was_afterwards():
    with CudaOnCpu():
        pass
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1).cuda()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.synchronize()
