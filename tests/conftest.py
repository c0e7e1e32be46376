"""What several tests share: running commands, small data folders, and the published material beside the project."""

import errno
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.data.images import bicubic_downscale, write_png
from utils.errors import exit_on_harness_error
from utils.files import ROOT

SHARED = ROOT.parent / "shared"


# What an audit finds of times, which are real in most tests, and which a machine with other work may spoil;
# tests/referee/test_audit.py has clocks that do not.
ABOUT_TIME = re.compile(r"its clock says|for a seen image|repeated runs took|plain pass takes|outside of torch")


def found_beside_times(record):
    """What the audit of a record found, but for what it found of times."""
    return [finding for finding in record["audit"]["findings"] if not ABOUT_TIME.search(finding)]


@pytest.fixture
def shared():
    """The folder with published checkpoints and benchmarks; skips the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no published material in {SHARED}")
    return SHARED


def photograph(height, width, seed=0):
    """A smooth random H x W x 3 uint8 image, so that networks and metrics see something like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    fine = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return np.clip(fine + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def on_a_full_disk(*_arguments):
    """Stands in for what writes."""
    raise OSError(errno.ENOSPC, "No space left on device")


def write_pairs(folder, names, size=(64, 96), layout=("HR", "LR")):
    """Write HR and bicubic LR images of `size` (H, W) into `folder`; return the folder."""
    for seed, name in enumerate(names):
        hr = photograph(*size, seed)
        write_png(Path(folder) / layout[0] / f"{name}.png", hr)
        write_png(Path(folder) / layout[1] / f"{name}x4.png", bicubic_downscale(hr))
    return Path(folder)


@pytest.fixture
def pairs(tmp_path):
    """A data folder with two small pairs, a and b, in the plain layout."""
    return write_pairs(tmp_path / "data", ["a", "b"])


def command_module(name):
    """The module that `python -m NAME` runs: of a package its `__main__`."""
    spec = importlib.util.find_spec(name)
    return importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs a script of the project, or `-m` and a module, as its command line does but in this process: importing
    torch anew for each would take most of the tests' time. Gives the status and what was printed.
    """

    def run(*arguments, cwd=ROOT):
        words = list(map(str, arguments))
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(str(ROOT))
        module = command_module(words.pop(1)) if words[0] == "-m" else None
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        try:
            exit_on_harness_error(module.main) if module else runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        printed, complaints = capfd.readouterr()
        return subprocess.CompletedProcess(words, status, printed, complaints)

    return run


@pytest.fixture(autouse=True)
def hidden_gpu(monkeypatch):
    """Hides GPUs from a test and from what it starts: what is expected is a CPU's. tests/test_cuda.py has its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
