"""The C sources under AddressSanitizer and UBSan, with and without the instruction sets that they know."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import ROOT

WITHOUT = {  # what a build may not use, of what this processor has
    "all": "",
    "no AMX": "-mno-amx-tile -mno-amx-bf16",
    "no bfloat16": "-mno-amx-bf16 -mno-avx512bf16",
    "no AVX-512": "-mno-amx-bf16 -mno-avx512bf16 -mno-avx512f",
}
RUNTIMES = {"gcc": "libasan.so", "clang": "libclang_rt.asan-x86_64.so"}
# Sizes that fit neither tiles nor strips, and one that is smaller than both.
PROGRAM = """
import numpy as np
import torch

from kernels import compiler, convolution
from kernels.ssim import similarity_in_c
from models.nanosr_amx import NanoSR_amx
from models.nanosr_winograd import NanoSR_winograd
from utils.evaluate import metrics

compiler.CACHE = compiler.Path("/nowhere")
built = []


def attempt(name, function):
    try:
        function()
    except RuntimeError as error:
        assert "cannot compile it" in str(error) or "does not let" in str(error), error
    else:
        built.append(name)


def network(make):
    model = make().eval()
    with torch.no_grad():
        for size in ((37, 29), (5, 70), (1, 1)):
            assert torch.isfinite(model(torch.rand(1, 3, *size))).all()


def training(kernel):
    convolution.library(kernel, 16, 16)
    shapes = (48, 48, 32, 32), (16, 80, 7, 33), (64, 32, 1, 1), (17, 28, 9, 6)
    for c_in, c_out, height, width in shapes:
        if not convolution.takes(kernel, c_in, c_out):
            continue
        x = torch.randn(3, c_in, height, width).requires_grad_()
        weight, bias = torch.randn(c_out, c_in, 3, 3).requires_grad_(), torch.randn(c_out).requires_grad_()
        other = torch.randn(3, c_out, height, width).requires_grad_()
        convolution.convolve(x, weight, bias, kernel).float().sum().backward()
        convolution.convolve_silu(x, weight, bias, kernel).float().sum().backward()
        convolution.convolve_attention(x, weight, bias, other, kernel).float().sum().backward()
        assert torch.isfinite(weight.grad).all()


attempt("winograd", lambda: network(lambda: NanoSR_winograd("float32")))
attempt("winograd in float16", lambda: network(lambda: NanoSR_winograd("float16")))
attempt("winograd in bfloat16", lambda: network(lambda: NanoSR_winograd("bfloat16")))
attempt("AMX", lambda: network(NanoSR_amx))
attempt("training by AMX", lambda: training("amx"))
attempt("training by Winograd", lambda: training("winograd"))
if similarity_in_c(np.zeros((11, 11, 3), np.uint8), np.zeros((11, 11, 3), np.uint8), 11, 1.5, 1.0, 1.0) is not None:
    metrics.COMPILED_PIXELS = 0
    for shape in ((40, 51, 3), (19, 19, 3)):
        a, b = (np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in (1, 2))
        assert 0 < abs(metrics.ssim(a, b)) < 1
    built.append("SSIM")
print("built:", ", ".join(built))
"""


@pytest.mark.slow
@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.parametrize("compiler", RUNTIMES)
def test_sources_are_clean(compiler, without, tmp_path):
    path = shutil.which(compiler)
    if path is None:
        pytest.skip(f"no {compiler}")
    if without == "no AMX" and "amx_tile" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no AMX here to do without: the same as all")
    runtime = subprocess.run([path, f"-print-file-name={RUNTIMES[compiler]}"], capture_output=True, text=True)
    runtime = runtime.stdout.strip()
    if not os.path.isfile(runtime):
        pytest.skip(f"{compiler} has no sanitizers here")
    (tmp_path / "empty.c").write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() == 0; }\n")
    openmp = [path, "-fopenmp", str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if subprocess.run(openmp, capture_output=True).returncode:
        pytest.skip(f"{compiler} has no OpenMP here")
    wrapper = tmp_path / "cc"
    shared = "-shared-libasan" if compiler == "clang" else ""
    # -O1: instrumented code takes the compiler three times as long at -O3, and is not checked better.
    options = f"-g -fsanitize=address,undefined -fno-sanitize-recover=all -O1 {shared} {WITHOUT[without]}"
    wrapper.write_text(f'#!/bin/sh\nexec {path} "$@" {options}\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "CC": str(wrapper),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own are many
        "OMP_NUM_THREADS": "2",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert "runtime error" not in run.stderr
    assert "built: winograd" in run.stdout  # which every processor can do, like the next two
    assert "SSIM" in run.stdout
    assert without == "all" or "AMX" not in run.stdout
