"""models/nanosr_fast.py: the same function as the plain fused network."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from models.nanosr_fast import NanoSR_fast
from models.team07_NanoSR import NanoSR_inference
from models.training.nanosr import NanoSR_train
from tests.helpers import benchmark_psnr
from utils.zoo.checkpoints import load_state_dict, load_strictly


def both(precision="float32"):
    plain, fast = NanoSR_train().fuse().eval(), NanoSR_fast(precision=precision).eval()
    fast.load_state_dict(plain.state_dict(), strict=True)
    return plain, fast


def test_keys_are_the_plain_networks():
    assert NanoSR_fast().state_dict().keys() == NanoSR_inference().state_dict().keys()


@pytest.mark.parametrize("size", [(1, 1), (13, 17), (32, 20)])
def test_float32_differs_by_rounding_only(size):
    plain, fast = both()
    lr = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = plain(lr)
        assert torch.allclose(fast(lr), expected, rtol=0, atol=1e-5 * expected.abs().max())
        assert torch.allclose(fast(lr), expected, rtol=0, atol=1e-5 * expected.abs().max())  # in place, yet repeatable


@pytest.mark.parametrize(("precision", "loss_db"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_published_weights_keep_their_psnr(shared, precision, loss_db):
    path = shared / "official" / "team07_NanoSR.pth"
    fast = NanoSR_fast(precision=precision).eval()
    load_strictly(fast, load_state_dict(path), path)
    assert benchmark_psnr(fast, shared, "Set5") == pytest.approx(30.1985, abs=loss_db)


TRITON_AGAINST_TORCH = """
import torch
import torch.nn.functional as F
from models.nanosr_fast import Conv3x3
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
    for c_in, size in ((48, (13, 17)), (48, (1, 1)), (48, (16, 16)), (3, (13, 17))):  # 221 pixels: a tile and a part
        if dtype == torch.bfloat16 and c_in == 48:
            continue  # tl.dot takes its bits for whole numbers without a GPU; tests/test_cuda.py has it
        f, x = (torch.randn(1, c, *size).to(dtype, memory_format=torch.channels_last) for c in (c_in, 48))
        conv = Conv3x3(c_in, 48).to(dtype, memory_format=torch.channels_last).requires_grad_(False)
        z = F.conv2d(f.double(), conv.conv.weight.double(), conv.conv.bias.double(), padding=1)
        silu, attention = z * z.sigmoid(), (z + x.double()) * (z.sigmoid() - 0.5)
        before = f.clone(), x.clone()
        attend = lambda f, in_one: conv.attend(f, x, in_one)
        for expected, compute in ((z, conv), (silu, conv.activate), (attention, attend)):
            actual = compute(f, True)
            assert actual.dtype == dtype and actual.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)
            assert torch.equal(f, before[0]) and torch.equal(x, before[1])
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no Triton, which comes with torch for GPUs")
def test_triton_kernels_convolve_and_finish():
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # needs no GPU
    subprocess.run([sys.executable, "-c", TRITON_AGAINST_TORCH], check=True, env=environment)


@pytest.mark.skipif(bool(importlib.util.find_spec("triton")), reason="Triton is installed")
def test_machine_without_triton_is_told_so():
    with pytest.raises(RuntimeError, match="needs Triton, which comes with torch for GPUs; take the backend fast"):
        NanoSR_fast(with_triton=True)
