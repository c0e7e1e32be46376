"""utils/submission/__main__.py and what it calls: each broken rule is named, and what is packed runs elsewhere."""

import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from tests.helpers import needs_compiler, network_weights, record, write_model
from utils.files import ROOT
from utils.record import store_record
from utils.submission.checks import FAIL, PASS, SKIP, check_submission
from utils.submission.packing import pack, select_model_source, without_folders
from utils.zoo.registry import entry_from_file, find_entry, read_registry, sources_sha256


@pytest.fixture
def candidate(tmp_path):
    """Writes a small submission, broken as told; gives its entry."""

    def write(
        top="", forward="pass", end="", file="team42_Net.py", checkpoint="team42_Net.pth", weights=None, **changes
    ):
        paths = write_model(tmp_path, file, weights, checkpoint, top=top, forward=forward, end=end)
        return replace(entry_from_file(paths[0], "Net", {}, paths[1]), **changes)

    return write


def outcome(entry, **arguments):
    return {check.rule: check for check in check_submission(entry, **arguments)}


def failures(entry, **arguments):
    return {rule: check.detail for rule, check in outcome(entry, **arguments).items() if check.status == FAIL}


def test_sound_submission_breaks_no_rule(candidate):
    checks = outcome(candidate())
    assert {check.status for check in checks.values()} == {PASS, SKIP}
    assert [rule for rule, check in checks.items() if check.status == SKIP] == [
        "parameters and FLOPs as claimed",
        "PSNR reaches the threshold",
    ]


BROKEN = {
    "file name": ({"file": "net.py"}, "names and numbers", "teamNN_Name.py"),
    "checkpoint name": ({"checkpoint": "weights.pth"}, "names and numbers", "teamNN_Name.pth"),
    "other number": ({"checkpoint": "team43_Net.pth"}, "names and numbers", "number and name differ"),
    "other id": ({"id": 7}, "names and numbers", "team number 42"),
    "foreign import": ({"top": "import numpy"}, "imports torch and the standard library only", "imports numpy"),
    "own module": (
        {"top": "if False:\n    import models.helper"},
        "imports torch and the standard library only", "models of its own",
    ),
    "relative import": (
        {"top": "if False:\n    from .helper import x"}, "imports torch and the standard library only", "merge it in",
    ),
    "whole module": ({"weights": torch.nn.Conv2d(1, 1, 1)}, "checkpoint holds plain tensors", "could run code"),
    "missing key": ({"weights": {"other": torch.ones(1)}}, "checkpoint loads strictly", "2 missing keys: conv.bias"),
    "strict=False": ({"lenient": True}, "checkpoint loads strictly", "strict=False"),
    "sets threads": ({"top": "torch.set_num_threads(3)"}, "leaves global state alone", "torch threads"),
    "seeds": ({"top": "torch.manual_seed(1)"}, "leaves global state alone", "torch random state"),
    "patches the clock": (
        {"top": "import time\ntime.perf_counter = lambda: 0.0"}, "leaves global state alone", "clocks",
    ),
    "sets benchmark in forward": (
        {"forward": "torch.backends.cudnn.benchmark = True"}, "leaves global state alone", "cudnn settings",
    ),
    "exits": (
        {"top": "import os\nos._exit(3)"},
        "runs in a separate process", "status 3",
    ),
    "even sizes only": (
        {"forward": "assert x.shape[2] % 2 == 0"}, "output is 4x the input, at odd sizes too", "fails on an LR image",
    ),
    "cropped": ({"end": "[..., :-1]"}, "output is 4x the input, at odd sizes too", "LR image of 23 x 17"),
    "NaN": ({"end": ".log()"}, "output is finite", "black image"),
    "random": ({"end": " + torch.rand(1)"}, "output is deterministic, on a second call too", "on a second call"),
    "grows": (
        {"forward": "self.conv.bias.data += 0.1"}, "output is deterministic, on a second call too", "on a second call",
    ),
    "other range": ({"end": " * 255"}, "output fits data_range", "is it the other one"),
    "exchanged colours": ({"end": ".flip(1)"}, "PSNR of the sample", "are colours exchanged"),
    "match statement": (
        {"top": "match 1:\n    case 1: pass"}, "runs in the organizers' environment", "the organizers have Python 3.9",
    ),
    "torch.compile": (
        {"top": "if False:\n    torch.compile(None)"}, "runs in the organizers' environment", "uses torch.compile",
    ),
    "claims": ({"published": {"params_m": 0.5}}, "parameters and FLOPs as claimed", "claimed as 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_rule_is_named(candidate, kind):
    changes, rule, part = BROKEN[kind]
    broken = failures(candidate(**changes))
    assert part in next(detail for name, detail in broken.items() if name.startswith(rule))


def test_imports_that_the_organizers_install_pass(candidate):
    entry = candidate(top="import numpy")
    assert "imports torch and the standard library only" not in failures(entry, requirements={"numpy"})


def test_submission_that_hangs_is_named(candidate, monkeypatch):
    monkeypatch.setattr("utils.submission.checks.START_S", 2)
    broken = failures(candidate(top="import time\ntime.sleep(60)"))
    assert broken == {"runs in a separate process": "did not end within 2 s and was killed"}


def test_what_a_submission_changes_stays_in_its_process(candidate):
    threads = torch.get_num_threads()
    assert "torch threads" in failures(candidate(top="torch.set_num_threads(3)"))["leaves global state alone"]
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_team_07_is_packed_and_runs_from_an_empty_folder(command, pairs, tmp_path):
    measure = ("--data_dir", pairs, "--device", "cpu", "--runs", 1, "--repeats", 1)
    assert command("eval.py", "--model_id", 7, *measure, cwd=tmp_path).returncode == 0
    result = command("-m", "utils.submission", "pack", "--model_id", 7, "--out_file", tmp_path / "a.zip", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "models" / "team07_NanoSR.py").read_bytes() == (
        ROOT / "models" / "team07_NanoSR.py"
    ).read_bytes()
    code = (
        "import argparse, select_model as s; m, name, r, tile = s.select_model(argparse.Namespace(model_id=7), 'cpu');"
        "print(name, sum(p.numel() for p in m.parameters()), r, tile)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "unpacked", capture_output=True, text=True)
    assert run.stdout.split() == ["07_NanoSR_inference", "550992", "1.0", "None"], run.stderr
    factsheet = command("-m", "utils.submission", "factsheet", "--model_id", 7, cwd=tmp_path)
    assert r"NanoSR\_inference & " in factsheet.stdout
    assert "0.551 M parameters" in factsheet.stdout
    assert "36.02 G FLOPs" in factsheet.stdout


def packable():
    """A record that has what `pack` writes about."""
    steady = dict.fromkeys(("median_ms", "p10_ms", "p90_ms", "warmup", "repeats", "lr_height", "lr_width"), 1)
    return record(runtime={"steady": steady})


@needs_compiler
@pytest.mark.slow
def test_sources_beside_the_file_are_packed_with_it(tmp_path):
    entry = find_entry(210, read_registry())
    names = pack(entry, packable(), tmp_path / "a.zip")  # which runs it in an empty folder
    files = ("models/nanosr_winograd.py", "kernels/nanosr_winograd.c", "models/team07_NanoSR.py")
    assert set(names) >= set(files)


@pytest.mark.parametrize("changed", ["code", "weights"])
def test_results_of_another_file_or_of_other_weights_are_none(candidate, command, tmp_path, changed):
    entry = candidate()
    results = record(model={"name": entry.name, "file_sha256": sources_sha256(entry), "sha256": entry.sha256})
    store_record(tmp_path / "results" / "records.json", entry.key, results)
    words = "--model_file", entry.file, "--checkpoint", entry.checkpoint
    run = command("-m", "utils.submission", "factsheet", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "2 runs; the peak memory is 965.48 MiB." in run.stdout  # there is no steady time
    candidate(
        **{"top": "# changed"} if changed == "code" else {"weights": {**network_weights(), "conv.bias": torch.ones(48)}}
    )
    run = command("-m", "utils.submission", "factsheet", *words, cwd=tmp_path)
    assert run.returncode == 2
    assert f"its results of Net are of other {changed}; run python eval.py --model_file … again" in run.stderr


def test_packed_record_tells_nothing_of_the_machines_folders():
    packed = without_folders(record(model={"file": "/home/me/team42_Net.py", "checkpoint": "/home/me/net.pth"}))
    assert (packed.model.file, packed.model.checkpoint, packed.dataset.folder) == ("team42_Net.py", "net.pth", "sample")


def test_pack_asks_for_results_first(command, tmp_path):
    result = command("-m", "utils.submission", "pack", "--model_id", 7, cwd=tmp_path)
    assert result.returncode == 2
    assert "run python eval.py --model_id 7 first" in result.stderr


def test_model_of_no_registry_is_checked_as_eval_measures_it(command, candidate, tmp_path):
    entry = candidate()
    what = ("--model_file", entry.file, "--checkpoint", entry.checkpoint)
    result = command("-m", "utils.submission", "check", *what, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pass  checkpoint loads strictly: strict=True" in result.stdout
    result = command("-m", "utils.submission", "check", *what, "--model_id", 7, cwd=tmp_path)
    assert "name one model, by --model_id or by --model_file" in result.stderr


@pytest.mark.parametrize(
    "key", [pytest.param("", marks=pytest.mark.slow), "params", pytest.param("params_ema", marks=pytest.mark.slow)]
)
def test_weights_are_found_in_the_archive_where_a_training_framework_left_them(candidate, tmp_path, key):
    weights = network_weights()
    entry = candidate(weights={"iter": 3, key: weights} if key else weights)
    pack(entry, packable(), tmp_path / "a.zip")  # which runs it in an empty folder
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        branch = archive.read("select_model.py").decode()
    assert f"load_state_dict(state{[key] if key else ''}, strict=True)" in branch


def test_branch_names_class_arguments_and_key(candidate):
    entry = candidate(weights={"net_g": network_weights()}, state_key="net_g")
    assert "state['net_g'], strict=True" in select_model_source(entry)
    entry = replace(find_entry(7, read_registry()), arguments=[3, 3])
    source = select_model_source(entry)
    compile(source, "select_model.py", "exec")
    assert "model = NanoSR_inference(3, 3)" in source
    assert "(3, upscale=4)" in select_model_source(replace(entry, arguments={"*": [3], "upscale": 4}))
