"""eval.py --isolated and --model_file: a bad model costs its own result at most, and a good one gets what it earned."""

import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.helpers import QUICK, needs_sandbox, record, stored
from utils.data.datasets import open_dataset
from utils.evaluate.measurement import ALONE, MeasurementPlan
from utils.files import ROOT
from utils.record import Status, read_incomplete, read_results, store_record
from utils.resumable import ResumableMeasurement, Rules
from utils.zoo.registry import entry_from_file


def test_bad_model_costs_its_row_and_the_baseline_keeps_its(command, submission, pairs, tmp_path):
    records = tmp_path / "results" / "records.json"
    words = submission(forward="os._exit(0)")
    key = f"file {words[1]} Net {words[-1]}"
    store_record(records, key, record())  # of an earlier run; it is not a result of this one
    result = command(
        "eval.py", "--isolated", *QUICK, "--data_dir", pairs, *words, "--score", "--edition", 2025, cwd=tmp_path
    )
    assert result.returncode == 1, result.stderr
    assert re.search(r"Net +ended its process without a result", result.stdout)
    assert read_results(records)["registry 0"].is_complete
    assert read_incomplete(records).keys() == {key}
    assert len(list((tmp_path / "results" / "logs").glob("42_Net-*.log"))) == 1


def test_contestant_gets_the_figures_of_this_process(command, pairs, tmp_path):
    arguments = (*QUICK, "--data_dir", pairs, "--model_id", 7)
    for name, more in (("plain", ()), ("apart", ("--isolated",))):
        assert command("eval.py", *arguments, *more, "--results", tmp_path / name, cwd=tmp_path).returncode == 0
    plain, apart = (stored(tmp_path / name)["NanoSR_inference"] for name in ("plain", "apart"))
    for key in ("images", "complexity", "model", "dataset"):
        assert apart[key] == plain[key], key
    assert plain["audit"] is None
    assert apart["audit"]["findings"] == []
    assert set(os.listdir(tmp_path / "apart" / "logs")) >= {"07_NanoSR_inference.log"}


@pytest.mark.slow
@pytest.mark.real_process
@pytest.mark.parametrize("sandbox", ["off", pytest.param("require", marks=needs_sandbox)])
def test_worker_in_a_pass_without_end_goes_with_a_host_that_is_killed(submission, pairs, tmp_path, sandbox):
    network = submission(forward="print('forever')\n        while True: pass")
    words = (*QUICK, "--data_dir", pairs, *network, "--sandbox", sandbox, "--results", tmp_path / "results")
    command = [sys.executable, "eval.py", *map(str, words)]
    host = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    logs = tmp_path / "results" / "logs"
    while not any("forever" in log.read_text() for log in logs.glob("42_Net-*.log")):
        assert host.poll() is None
        time.sleep(0.1)
    family = psutil.Process(host.pid).children(recursive=True)
    assert family
    host.kill()
    host.wait()
    assert not psutil.wait_procs(family, timeout=100)[1]


def test_failure_of_the_host_itself_costs_the_row_alone(submission, pairs, monkeypatch, tmp_path):
    _, file, _, weights = submission()
    entry, records = entry_from_file(file, "Net", [], weights), tmp_path / "results" / "records.json"
    rules, device = Rules(tmp_path), torch.device("cpu")
    monkeypatch.setattr("utils.evaluate.measurement._measure_steady", lambda *arguments: {}["no such key"])
    measured = (device, open_dataset(pairs), MeasurementPlan(1, 1, 1))
    reason = ResumableMeasurement(entry, records, rules, *measured).measure(ALONE)
    assert reason == "the host failed (KeyError: 'no such key')"
    assert read_incomplete(records)[entry.key].reason == reason
    assert "_measure_steady" in rules.log_of(entry).read_text()
    with pytest.raises(KeyError):  # a model of ours fails as any code does
        ResumableMeasurement(entry, records, None, *measured).measure(ALONE)


def test_growing_record_is_stored_as_often_as_its_file_allows(monkeypatch, tmp_path):
    now, stored = [100.0], []

    def slow_store(path, name, record):
        now[0] += 0.1
        stored.append(record.passes)

    monkeypatch.setattr("utils.resumable.time.monotonic", lambda: now[0])
    monkeypatch.setattr("utils.resumable.store_record", slow_store)
    entry = SimpleNamespace(name="Net", key="file Net")
    measurement = ResumableMeasurement(entry, tmp_path, None, None, None, None)
    for passes in range(100):
        now[0] += 0.05
        measurement.store(SimpleNamespace(status=Status.RUNNING, passes=passes))
    assert stored == [0, 40, 80]  # every 2 seconds of 0.05 each, a twentieth of the time
    measurement.store(SimpleNamespace(status=Status.COMPLETE, passes=100))
    assert stored[-1] == 100


def test_what_a_model_prints_is_in_its_log(command, submission, pairs, tmp_path):
    words = submission(top="print('hello from the model')")
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "hello" not in result.stdout
    assert "hello from the model" in next((tmp_path / "results" / "logs").iterdir()).read_text()


def test_sandbox_that_does_not_work_is_named_or_required(command, submission, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.isolation.sandbox.why_not", lambda: "bwrap is not installed")
    words = (*QUICK, "--data_dir", pairs, *submission())
    result = command("eval.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"audit: (not )?clean.* \(no sandbox \(bwrap is not installed\)\)", result.stdout)
    result = command("eval.py", *words, "--sandbox", "require", cwd=tmp_path)
    assert result.returncode == 2
    assert "--sandbox require: bwrap is not installed" in result.stderr
