"""benchmarks/gpu.py: every part of it, tried with the smallest settings where there is no GPU."""

import subprocess
import sys

import pytest

from benchmarks.gpu import Part, parts, run
from utils.files import ROOT


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", "cpu", "--time_limit", 30, "--out", tmp_path]
    result = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
    printed = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert result.returncode == 0, result.stdout + result.stderr + str(printed)
    summary = (tmp_path / "summary.md").read_text()
    assert "tiny settings" in summary
    assert summary.count("| well |") == len(printed) == len(parts("", "", "cpu", True))
    for part, words in {"protocol": "NanoSR_train", "speed": "NanoSR_fast", "training": "collapsed"}.items():
        assert words in printed[part]


def test_part_that_fails_says_why_and_one_that_hangs_is_stopped(tmp_path):
    failing = Part("failing", 1, ("-c", "print('before'); raise SystemExit('no such thing')"))
    assert run(failing, tmp_path / "failing.txt", 60) == "status 1: no such thing"
    hanging = Part("hanging", 1, ("-c", "import time; print('as it comes', flush=True); time.sleep(600)"))
    assert run(hanging, tmp_path / "hanging.txt", 5) == "stopped after 5 s"
    assert (tmp_path / "hanging.txt").read_text() == "as it comes\n"
    assert run(hanging, tmp_path / "never.txt", 1) == "not begun: no time left"
