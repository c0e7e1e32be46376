"""utils/worker/state.py: what a network's code changes is named; what it leaves alone is not."""

import os
import subprocess
import sys
import time

import pytest
import torch

from utils.files import ROOT
from utils.worker import state


def slower_clock(monkeypatch):
    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() / 100)


CHANGES = {
    "clocks": slower_clock,
    "functions of torch": lambda m: m.setattr(torch.nn.Module, "__call__", lambda self, *a: a),
    "functions that count": lambda m: m.setattr("utils.measure.complexity.measure_complexity", lambda model: None),
    "registries of counts": lambda m: m.delitem(state.flop_registry, torch.ops.aten.mm),
    "environment variables (OMP_PROC_BIND)": lambda m: m.setenv("OMP_PROC_BIND", "false"),
    "working directory": lambda m: m.chdir(os.sep),
    "sys.path": lambda m: m.syspath_prepend("/nowhere"),
    "torch modes": lambda m: m.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_named(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = state.snapshot()
    CHANGES[name](monkeypatch)
    assert name in state.changes(before, state.snapshot())


def test_running_a_network_changes_nothing():
    before = state.snapshot()
    torch.nn.Conv2d(3, 3, 3)(torch.rand(1, 3, 8, 8))
    assert state.changes(before, state.snapshot()) == []


def test_importing_opencv_changes_nothing():
    code = (
        "from utils.worker import state; before = state.snapshot(); import cv2, os;"
        "print(os.environ['LD_LIBRARY_PATH'], state.changes(before, state.snapshot()))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith(" []\n")


def test_random_numbers_drawn_are_named():
    before = state.random_states()
    torch.rand(1)
    assert state.changes(before, state.random_states()) == ["torch random state"]
