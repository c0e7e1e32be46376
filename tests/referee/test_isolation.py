"""utils/referee/isolation.py, and eval.py --isolated: a process that misbehaves costs its own row."""

import json
import os
import sys
import time

import psutil
import pytest
import torch

from tests.zoo.test_submitted_models import NETWORK
from utils.referee.isolation import LOG_BYTES, run_isolated
from utils.results.record import read_incomplete, read_results, store_record

GIB = 2**30


@pytest.fixture
def run(tmp_path):
    """Runs Python code isolated; gives the reason and the log."""

    def isolated(code, time_limit_s=30, memory_limit=4 * GIB):
        reason = run_isolated([sys.executable, "-c", code], tmp_path / "log", time_limit_s, memory_limit)
        return reason, (tmp_path / "log").read_bytes()

    return isolated


def test_command_that_ends_well_has_no_reason(run):
    assert run("print('hello')") == (None, b"hello\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('error: x.png: broken')", "x.png: broken"),
        ("raise KeyError('cfg')", "KeyError: 'cfg'"),
        ("import os; os._exit(5)", "ended with status 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        (r"import os; os.write(2, b'\xff\xfe\n'); os._exit(1)", r"\xff\xfe"),
    ],
)
def test_failure_is_told_in_a_line(run, code, reason):
    assert run(code)[0] == reason


def test_hanging_command_is_killed_with_its_children(run, tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    reason, log = run(code, time_limit_s=2)
    assert reason == "did not end within 2 s and was killed"
    assert time.monotonic() - start < 20
    child = int(log)
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child still runs")


def test_memory_is_limited(run):
    reason, _ = run("x = bytearray(600 * 2**20)\nimport time; time.sleep(30)", memory_limit=GIB / 4)
    assert reason == "took more than 0.2 GiB of memory and was killed"


def test_endless_output_is_cut_and_does_not_block(run):
    reason, log = run("while True: print('x' * 1000)", time_limit_s=2)
    assert "did not end" in reason
    assert len(log) == LOG_BYTES


def test_bad_model_costs_its_row_and_the_baseline_keeps_its(command, pairs, tmp_path):
    (tmp_path / "team42_Net.py").write_text(NETWORK.format(constructor="pass", forward="import os; os._exit(0)"))
    convolution = torch.nn.Conv2d(3, 48, 3, padding=1)
    torch.save({f"conv.{key}": value for key, value in convolution.state_dict().items()}, tmp_path / "w.pth")
    records = tmp_path / "results" / "records.json"
    store_record(records, "Net", {"status": "complete"})  # of an earlier run; it is no result of this one
    result = command(
        "eval.py", "--isolated", "--device", "cpu", "--data_dir", pairs, "--runs", 1, "--repeats", 1, "--model_file",
        tmp_path / "team42_Net.py", "--class", "Net", "--checkpoint", tmp_path / "w.pth", "--score", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "Net: incomplete: ended its process without a result" in result.stdout
    assert read_results(records)["EFDN"]["status"] == "complete"
    assert read_incomplete(records).keys() == {"Net"}
    assert (tmp_path / "results" / "logs" / "42_Net.log").exists()


def test_isolated_measurement_stores_what_a_plain_one_does(command, pairs, tmp_path):
    arguments = ("--device", "cpu", "--data_dir", pairs, "--model_id", 7, "--runs", 1, "--repeats", 1)
    for name, more in (("plain", ()), ("apart", ("--isolated",))):
        assert command("eval.py", *arguments, *more, "--results", tmp_path / name, cwd=tmp_path).returncode == 0
    plain, apart = (
        json.loads((tmp_path / name / "records.json").read_text())["models"]["NanoSR_inference"]
        for name in ("plain", "apart")
    )
    assert apart["images"] == plain["images"]
    assert apart["complexity"] == plain["complexity"]
    assert os.listdir(tmp_path / "apart" / "logs") == ["07_NanoSR_inference.log"]
