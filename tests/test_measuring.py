"""utils/measuring.py: the order in which models are measured, and several at once."""

import os
from pathlib import Path

import pytest
import torch

from tests.helpers import stored, write_pairs
from utils import measuring
from utils.data.datasets import open_dataset
from utils.errors import HarnessError
from utils.evaluate.measurement import ALONE, MeasurementPlan
from utils.request import DataChoice, IsolationChoice, ModelChoice, Request
from utils.zoo.registry import find_entry, read_registry

SECONDS = {"quick": None, "slow": 4000.0, "slower": 9000.0, "endless": float("inf")}


def request(tmp_path, **changes):
    return Request(ModelChoice(), DataChoice(), MeasurementPlan(), IsolationChoice(), tmp_path, **changes)


@pytest.mark.parametrize(
    ("entries", "order"),
    [
        (["endless", "slower", "quick", "slow"], ["endless", "slower", "quick", "slow", "slow", "slower", "endless"]),
        (["slow"], ["slow"]),
    ],
)
def test_slow_models_wait_for_the_others_the_slowest_longest(monkeypatch, tmp_path, entries, order):
    tried = []

    def measure_entry(entry, count, dataset, device, request, world, patience_s=None):
        tried.append(entry)
        return SECONDS[entry] if patience_s else None

    monkeypatch.setattr(measuring, "measure_entry", measure_entry)
    measuring.measure_all(entries, None, None, request(tmp_path), ALONE)
    assert tried == order


@pytest.mark.parametrize(
    ("models", "edition", "apart"),
    [
        (ModelChoice(file=Path("net.py")), 2026, True),
        (ModelChoice(repository=Path("esr")), 2026, True),
        (ModelChoice(file=Path("net.py")), None, False),
        (ModelChoice(ids=(7,)), 2026, False),
    ],
)
def test_baseline_of_untrusted_models_runs_in_a_process_as_theirs(tmp_path, models, edition, apart):
    asked = Request(models, DataChoice(), MeasurementPlan(), IsolationChoice(), tmp_path, edition=edition)
    assert measuring.runs_apart(find_entry(126, read_registry()), asked) is apart


def test_jobs_without_gpus_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(HarnessError, match="--jobs 2: takes a GPU for each, and 1 are here"):
        measuring.measure_all(["a", "b"], None, None, request(tmp_path, jobs=2), ALONE)


@pytest.mark.slow
def test_models_measured_at_once_are_all_in_the_results(monkeypatch, tmp_path, pairs):
    """Two CPU processes stand in for two GPUs, which they share a clock for here."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    entries = [find_entry(number, read_registry()) for number in (126, 7)]
    asked = Request(
        ModelChoice(), DataChoice(pairs), MeasurementPlan(1, 0, 1), IsolationChoice(), tmp_path, "cpu", jobs=2
    )
    measuring.measure_all(entries, open_dataset(pairs), None, asked, ALONE)
    assert stored(tmp_path).keys() == {"SPAN", "NanoSR_inference"}


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "seen"), [("4,7,9", {"4", "7"}), (None, {"0", "1"})])
def test_each_job_sees_a_gpu_of_its_own(monkeypatch, visible, seen):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with measuring.one_process_per_gpu(2) as pool:
        first, second = pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES"), pool.submit(os.getpid)
        answers = {first.result()}
        while len(answers) < 2:  # until the other process has started
            answers.add(pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result())
        assert second.result()
    assert answers == seen


@pytest.mark.parametrize("inside", ["results", "data"])
def test_checkout_that_holds_images_or_results_is_refused(tmp_path, inside):
    places = {"results": tmp_path / "results", "data": tmp_path / "data"}
    places[inside] = tmp_path / "checkout" / inside
    dataset = open_dataset(write_pairs(places["data"], ["a"], size=(16, 16)))
    with pytest.raises(HarnessError, match=f"checkout/{inside}: lies in --repository"):
        measuring.check_outside(tmp_path / "checkout", places["results"], dataset)
    measuring.check_outside(tmp_path / "other", places["results"], dataset)


def test_taken_id_is_told_before_the_measurement(tmp_path, pairs, command):
    (tmp_path / "team42_Net.py").write_text("from torch import nn\n\nclass Net(nn.Module):\n    pass\n")
    torch.save({}, tmp_path / "w.pth")
    words = ("--model_file", "team42_Net.py", "--checkpoint", "w.pth", "--register", 7, "--data_dir", pairs)
    result = command("eval.py", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert "--register 7: models.toml has this id for NanoSR" in result.stderr
    assert not (tmp_path / "results").exists()
