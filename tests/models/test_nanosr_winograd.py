"""models/nanosr_winograd.py: the same function as the plain fused network, and clear words where it cannot run."""

import os

import pytest
import torch

from models.nanosr_winograd import NanoSR_winograd, functions
from models.team07_NanoSR import NanoSR_inference
from models.training.nanosr import NanoSR_train
from tests.helpers import benchmark_psnr, needs_compiler
from utils.zoo.checkpoints import load_state_dict, load_strictly

pytestmark = pytest.mark.kernel("kernels/nanosr_winograd.c in bfloat16")


def winograd(precision="float32"):
    try:
        return NanoSR_winograd(precision).eval()
    except RuntimeError as error:
        if "AVX512_BF16" in str(error):
            pytest.skip("the processor has no AVX512_BF16")
        raise


def both(precision="float32"):
    plain, fast = NanoSR_train().fuse().eval(), winograd(precision)
    fast.load_state_dict(plain.state_dict(), strict=True)
    return plain, fast


def largest_difference(plain, fast, size):
    """Of the outputs, as a share of the largest one; twice, since the second pass finds the memory used."""
    lr = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = plain(lr)
        return max((fast(lr) - expected).abs().max() for _ in range(2)) / expected.abs().max()


@needs_compiler
def test_keys_are_the_plain_networks():
    assert winograd().state_dict().keys() == NanoSR_inference().state_dict().keys()


@needs_compiler
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 4), (13, 17), (32, 20), (5, 131)])
def test_float32_differs_by_rounding_only(size):  # a width of 131 takes more than one strip of tiles
    assert largest_difference(*both(), size) < 3e-5


@needs_compiler
@pytest.mark.parametrize("size", [(1, 1), (9, 1), (13, 17), (5, 131)])
def test_float16_rounds_maps_to_it(size):
    assert largest_difference(*both("float16"), size) < 3e-3


@needs_compiler
def test_memory_layout_of_the_input_makes_no_difference():
    fast, lr = winograd(), torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        assert torch.equal(fast(lr), fast(lr.contiguous(memory_format=torch.channels_last)))


@needs_compiler
def test_a_smaller_image_after_a_larger_one_finds_nothing_of_it():
    plain, fast = both()
    assert all(largest_difference(plain, fast, size) < 3e-5 for size in ((24, 70), (9, 10), (24, 70)))


@needs_compiler
@pytest.mark.parametrize(("precision", "loss_db"), [("float32", 1e-3), ("float16", 1e-3), ("bfloat16", 0.02)])
def test_published_weights_keep_their_psnr(shared, precision, loss_db):
    path = shared / "official" / "team07_NanoSR.pth"
    fast = winograd(precision)
    load_strictly(fast, load_state_dict(path), path)
    assert benchmark_psnr(fast, shared, "Set5") == pytest.approx(30.1985, abs=loss_db)


@pytest.fixture
def narrow_compiler(tmp_path, monkeypatch):
    """A compiler for a processor without AVX-512."""
    script = tmp_path / "narrow-cc"
    script.write_text('#!/bin/sh\nexec cc "$@" -mno-avx512f -mno-avx512bf16\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an option of x86 compilers")
@pytest.mark.parametrize(("precision", "difference"), [("float32", 3e-5), ("float16", 3e-3)])
def test_processor_without_avx512_gives_the_same(narrow_compiler, precision, difference):
    plain, fast = both(precision)
    fast.functions = functions.__wrapped__(precision)
    assert largest_difference(plain, fast, (13, 70)) < difference
    with pytest.raises(RuntimeError, match=r"cannot compile it: .*bfloat16 takes a processor with AVX512_BF16"):
        functions.__wrapped__("bfloat16")


def test_machine_without_a_compiler_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs a C compiler; install gcc or clang, or take the backend fast"):
        functions.__wrapped__("float32")


@needs_compiler
def test_several_images_at_once_are_refused():
    with pytest.raises(RuntimeError, match="takes one image, on the CPU"):
        winograd()(torch.rand(2, 3, 8, 8))
