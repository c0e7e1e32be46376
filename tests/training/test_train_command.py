"""train.py and training.fuse as a user runs them: killed, resumed, shared by processes, out of disk."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from models.team00_SPAN import SPAN
from models.training.nanosr import NanoSR_train
from models.training.span import SPAN_train
from tests.helpers import SMALL_CUT, WEIGHTS_OF_RUN, both_kinds, python, two_processes, write_photographs
from training.log import read_log
from training.loop import read_state
from training.recipe import load_recipe, recipe_from
from utils.files import ROOT, held
from utils.zoo.checkpoints import load_state_dict
from utils.zoo.registry import find_entry, read_registry


def train_command(recipe_path, prepared, run_dir, pairs, *arguments):
    return [
        "train.py", recipe_path, "--train_dir", prepared, "--run_dir", run_dir,
        "--validation_dir", pairs, "--device", "cpu", *arguments,
    ]  # fmt: skip


def recipe_in(state):
    return recipe_from(read_state(state, torch.device("cpu"))["recipe"], state)


@pytest.mark.slow
@both_kinds
def test_killed_at_any_moment_and_resumed_ends_with_the_same_bits(recipe_path, prepared, pairs, tmp_path):
    assert python(*train_command(recipe_path, prepared, tmp_path / "whole", pairs)).returncode == 0
    for kill_after in (4, 5):  # log rows: between two checkpoints, and around one
        command = train_command(recipe_path, prepared, tmp_path / f"cut{kill_after}", pairs)
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
        log = tmp_path / f"cut{kill_after}" / "log.csv"
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        result = python(*command, "--resume")
        assert result.returncode == 0, result.stderr
        assert {path.name for path in log.parent.glob("*.pth")} == WEIGHTS_OF_RUN[recipe_path.stem]
        for name in WEIGHTS_OF_RUN[recipe_path.stem]:
            expected = load_state_dict(tmp_path / "whole" / name)
            actual = load_state_dict(tmp_path / f"cut{kill_after}" / name)
            assert all(torch.equal(expected[key], actual[key]) for key in expected)
        assert [row["step"] for row in read_log(log)] == [1, 2, 3, 4, 5, 6]
        assert (log.parent / "curves.png").stat().st_size > 1000


def test_resumed_run_ends_with_the_same_bits(command, recipe_path, prepared, pairs, tmp_path):
    words = {name: train_command(recipe_path, prepared, tmp_path / name, pairs) for name in ("whole", "stopped")}
    assert command(*words["whole"]).returncode == 0
    assert "stopped at step" in command(*words["stopped"], "--time_limit", 0).stdout
    written = load_recipe(tmp_path / "stopped" / "recipe.toml")
    assert written == recipe_in(tmp_path / "stopped" / "state.pt")
    assert written.steps == load_recipe(recipe_path).steps
    assert command(*words["stopped"], "--resume").returncode == 0
    expected, actual = (load_state_dict(tmp_path / name / "nanosr_train.pth") for name in words)
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.parametrize("has_it", [pytest.param(True, marks=pytest.mark.slow), False])
def test_precision_is_the_devices_and_stays_that_of_the_run(
    command, recipe_path, prepared, pairs, tmp_path, monkeypatch, has_it
):
    recipe_path.write_text(recipe_path.read_text().replace('precision = "float32"\n', ""))
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    expected = "bfloat16" if has_it else "float32"
    monkeypatch.setattr("utils.measure.precision.has_bfloat16", lambda device: has_it)
    assert f"precision: {expected};" in command(*words, "--time_limit", 0).stdout
    monkeypatch.setattr("utils.measure.precision.has_bfloat16", lambda device: not has_it)  # as on another machine
    assert f"precision: {expected};" in command(*words, "--resume").stdout
    assert {row["precision"] for row in read_log(tmp_path / "run" / "log.csv")} == {expected}
    assert recipe_in(tmp_path / "run" / "state.pt").precision == expected


def test_precision_that_is_asked_for_is_taken_and_its_cost_told(
    command, recipe_path, prepared, pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr("utils.measure.precision.convolution_cost", lambda device, precision: 6.5)
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs, "--time_limit", 0)
    printed = command(*words, "--set", 'precision="bfloat16"').stdout
    assert "precision: bfloat16;" in printed
    assert "\nbfloat16: PyTorch emulates it on this processor" in printed
    assert "takes 6.5 times as long as in float32" in printed


def test_checkpoint_fuses_to_the_exported_average(command, recipe_path, prepared, pairs, tmp_path):
    run_dir = tmp_path / "run"
    assert command(*train_command(recipe_path, prepared, run_dir, pairs)).returncode == 0
    assert command("-m", "training.fuse", run_dir / "state.pt", "--out_file", tmp_path / "fused.pth").returncode == 0
    expected, actual = (load_state_dict(path) for path in (run_dir / "team07_NanoSR.pth", tmp_path / "fused.pth"))
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_loss_that_leaps_ends_the_training(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    result = command(*words, "--set", "learning_rate=0.1", "muon_learning_rate=0.0", "warmup=3")
    assert result.returncode == 3
    assert "times what it was at first" in result.stderr
    rows = read_log(tmp_path / "run" / "log.csv")
    assert float(rows[-1]["loss"]) > 10 * float(rows[0]["loss"])


@pytest.mark.parametrize("where", ["network", "feed"])
def test_want_of_memory_costs_one_line(command, recipe_path, prepared, pairs, tmp_path, monkeypatch, where):
    def greedy(*_arguments):
        return torch.empty(1 << 59) if where == "network" else np.empty(1 << 59)

    monkeypatch.setattr("training.loop.Trainer.gradients", greedy)
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs))
    assert result.returncode == 2
    assert "no memory for batch = 2 at hr_patch = 32" in result.stderr.strip().splitlines()[-1]


def test_dead_block_is_told_once(command, recipe_path, prepared, pairs, tmp_path):
    state = NanoSR_train().state_dict()
    state["block_3.pixel_attention.conv_1.conv.reduce.bias"].fill_(-1e4)
    torch.save(state, tmp_path / "dead.pth")
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    result = command(*words, "--init", tmp_path / "dead.pth")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("6 kernels (first: block_3.pixel_attention.conv_1.conv") == 1
    assert "no gradient" not in command(*train_command(recipe_path, prepared, tmp_path / "sound", pairs)).stderr


def test_minutes_stop_at_a_checkpoint(command, recipe_path, prepared, pairs, tmp_path):
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs, "--time_limit", 0))
    assert result.returncode == 0, result.stderr
    assert "stopped at step 1 of 6" in result.stdout
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs, "--resume"))
    assert "finished" in result.stdout


@pytest.mark.parametrize("minutes", ["nan", "-1"])
def test_minutes_that_would_never_pass_are_refused(command, recipe_path, minutes):
    result = command("train.py", recipe_path, "--time_limit", minutes)
    assert result.returncode == 2
    assert f"--time_limit: {minutes} is not a duration" in result.stderr


def test_validation_image_that_cannot_be_read_is_named_before_the_first_step(
    command, recipe_path, prepared, pairs, tmp_path
):
    path = pairs / "HR" / "b.png"
    path.write_bytes(path.read_bytes()[:-40])
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {path}: truncated PNG")
    assert not (tmp_path / "run").exists()


@both_kinds
def test_a_run_is_not_overwritten_nor_its_recipe_changed(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert command(*words, "--time_limit", 0).returncode == 0
    assert "go on with --resume" in command(*words).stderr
    recipe_path.write_text(recipe_path.read_text().replace("\nlearning_rate = 1e-3", "\nlearning_rate = 2e-3"))
    result = command(*words, "--resume")
    assert result.returncode == 2
    assert "the recipe has changed (learning_rate was 0.001)" in result.stderr


@pytest.mark.slow
@both_kinds
def test_two_processes_follow_one_with_the_doubled_batch(recipe_path, prepared, pairs, tmp_path):
    # Muon rounds to bfloat16, which makes a visible step of a difference in the last bit.
    recipe_path.write_text(recipe_path.read_text().replace("muon_learning_rate = 1e-3", "muon_learning_rate = 0.0"))
    one = train_command(recipe_path, prepared, tmp_path / "one", pairs)
    assert python(*one).returncode == 0
    two = train_command(recipe_path, prepared, tmp_path / "two", pairs)
    result = python(*two_processes(), *two)
    assert result.returncode == 0, result.stderr
    losses = [[float(row["loss"]) for row in read_log(tmp_path / run / "log.csv")] for run in ("one", "two")]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_full_disk_costs_one_line_and_keeps_the_old_checkpoint(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert command(*words, "--time_limit", 0).returncode == 0
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with files_of_at_most(10 * 2**20):  # the state needs 40
        result = command(*words, "--resume")
    assert result.returncode == 2, result.stderr
    assert "state.pt: cannot be written" in result.stderr.strip().splitlines()[-1]
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


@contextmanager
def files_of_at_most(size):
    """Let no file of this process grow larger, as on a disk that fills."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_fuse_writes_the_fused_file_and_prints_the_difference(command, tmp_path):
    model = NanoSR_train()
    torch.save(model.state_dict(), tmp_path / "nanosr_train.pth")
    result = command("-m", "training.fuse", tmp_path / "nanosr_train.pth", "--out_file", tmp_path / "zoo" / "fused.pth")
    assert result.returncode == 0, result.stderr
    difference = float(result.stdout.split("difference ")[1].split()[0])
    assert 0 < difference < 1e-4
    expected = model.fuse().state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in load_state_dict(tmp_path / "zoo" / "fused.pth").items()
    )


SHIPPED_FORMS = [  # plain networks whose training form's weights ship, too
    entry for entry in read_registry() if entry.training and find_entry(entry.training, read_registry()).sha256
]


@pytest.mark.parametrize("plain", SHIPPED_FORMS, ids=lambda entry: entry.name)
def test_the_registrys_plain_weights_are_its_training_forms_fused(command, tmp_path, plain):
    trained = find_entry(plain.training, read_registry())
    result = command("-m", "training.fuse", trained.checkpoint_path, "--out_file", tmp_path / "fused.pth")
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split("difference ")[1].split()[0]) < 1e-5
    shipped = load_state_dict(plain.checkpoint_path)
    for key, value in load_state_dict(tmp_path / "fused.pth").items():
        assert torch.allclose(value, shipped[key], rtol=2.5e-7, atol=1e-12), key  # the last bit may differ by machine


def test_weights_of_an_unknown_name_need_their_models_id(command, tmp_path):
    torch.save(SPAN_train().state_dict(), tmp_path / "mine.pth")
    words = ("-m", "training.fuse", tmp_path / "mine.pth", "--out_file", tmp_path / "fused.pth")
    assert "say whose they are by --model_id" in command(*words).stderr
    assert command(*words, "--model_id", 126).returncode == 0
    assert "EFDN has no training form" in command(*words, "--model_id", 0).stderr
    assert load_state_dict(tmp_path / "fused.pth").keys() == SPAN().state_dict().keys()


def test_weights_with_nan_are_named_before_the_first_step(command, recipe_path, prepared, pairs, tmp_path):
    state = NanoSR_train().state_dict()
    state["block_3.pixel_attention.conv_1.conv.reduce.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs), "--init", tmp_path / "nan.pth")
    assert result.returncode == 2
    assert "nan.pth: block_3.pixel_attention.conv_1.conv.reduce.bias holds NaN" in result.stderr.splitlines()[-1]


def test_loss_that_leaps_before_the_first_row_ends_the_training(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    changes = ("learning_rate=0.1", "muon_learning_rate=0.0", "warmup=3", "steps=2", "log_every=6")
    result = command(*words, "--set", *changes)
    assert result.returncode == 3, result.stderr
    assert "step 2: the loss" in result.stderr
    assert "start again in another --run_dir" in result.stderr


def test_what_is_said_after_a_divergence_can_be_done(command, recipe_path, prepared, pairs, tmp_path, monkeypatch):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert command(*words, "--time_limit", 0).returncode == 0
    with monkeypatch.context() as broken:
        broken.setattr("training.loop.check_finite", raise_floating_point_error)
        result = command(*words, "--resume")
    assert result.returncode == 3
    assert "--run_dir NEW --set learning_rate=" in result.stderr
    assert "--init RUN_DIR/state.pt takes the last checkpoint's weights" in result.stderr
    words = train_command(recipe_path, prepared, tmp_path / "new", pairs)
    result = command(*words, "--init", tmp_path / "run" / "state.pt", "--set", "learning_rate=1e-4")
    assert result.returncode == 0, result.stderr


def raise_floating_point_error(*_arguments):
    raise FloatingPointError("loss nan")


def test_resume_refuses_what_it_would_ignore_or_mix(command, recipe_path, prepared, prepare, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert "holds no checkpoint; a new run begins there" in command(*words, "--resume", "--time_limit", 0).stderr
    result = command(*words, "--resume", "--init", tmp_path / "run" / "nanosr_train.pth")
    assert "--init" in result.stderr.splitlines()[-1]
    assert result.returncode == 2
    other = write_photographs(tmp_path / "hr")
    (other / "2.png").unlink()
    assert prepare(other, tmp_path / "other", *SMALL_CUT).returncode == 0
    result = command(*train_command(recipe_path, tmp_path / "other", tmp_path / "run", pairs), "--resume")
    assert result.returncode == 2
    assert "the training set has changed since" in result.stderr
    assert command(*words, "--resume").returncode == 0


def test_weights_as_state_and_an_edited_network_are_told(command, recipe_path, prepared, pairs, tmp_path):
    run = tmp_path / "run"
    words = train_command(recipe_path, prepared, run, pairs)
    assert command(*words, "--time_limit", 0).returncode == 0
    state = torch.load(run / "state.pt", weights_only=True)
    state["params"]["more"] = torch.ones(1)
    torch.save(state, run / "state.pt")
    result = command(*words, "--resume")
    assert "the network has changed since (1 unexpected keys: more)" in result.stderr.splitlines()[-1]
    torch.save(NanoSR_train().state_dict(), run / "state.pt")
    result = command(*words, "--resume")
    assert result.returncode == 2
    assert f"take them by --init {run / 'state.pt'} in another --run_dir" in result.stderr.splitlines()[-1]
    words = train_command(recipe_path, prepared, tmp_path / "new", pairs, "--init", run / "state.pt", "--time_limit", 0)
    assert command(*words).returncode == 0


def test_second_training_in_one_folder_is_told_at_once(command, recipe_path, prepared, pairs, tmp_path):
    with held(tmp_path / "run", "choose another --run_dir"):
        result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs))
    assert result.returncode == 2
    assert "another process is at work there" in result.stderr


def test_training_goes_on_for_more_steps(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert command(*words).returncode == 0
    result = command(*words, "--resume", "--set", "steps=8")
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == list(range(1, 9))
    assert "steps: 6 so far, 8 from here on" in result.stdout
    result = command(*words, "--resume")
    assert result.returncode == 2
    assert "the run is at step 8 already, and the recipe ends at 6" in result.stderr
    result = command(*words, "--resume", "--set", "steps=8", "milestones=[1]")
    assert result.returncode == 2
    assert "the recipe has changed (" in result.stderr


def test_hr_images_alone_validate_a_training(command, recipe_path, prepared, pairs, tmp_path):
    shutil.rmtree(pairs / "LR")
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs, "--time_limit", 0))
    assert result.returncode == 0, result.stderr
    assert "validation: LR images are made from the HR images" in result.stdout


def test_patches_are_shifted_if_the_recipe_asks_for_it(command, recipe_path, prepared, pairs, tmp_path):
    losses = []
    for shifts in ("false", "true"):
        words = train_command(recipe_path, prepared, tmp_path / shifts, pairs, "--set", f"shifts={shifts}")
        assert command(*words, "hr_patch=24").returncode == 0
        losses.append(read_log(tmp_path / shifts / "log.csv")[0]["loss"])
    assert losses[0] != losses[1]
    result = command(
        *train_command(recipe_path, prepared, tmp_path / "no", pairs, "--set", "shifts=true", "hr_patch=28")
    )
    assert result.returncode == 2
    assert "hr_patch 28 with shifts: the training set holds a sub-image of side 40" in result.stderr


def test_option_that_a_command_does_not_have_is_not_advised(command, tmp_path):
    torch.save(NanoSR_train(), tmp_path / "whole.pth")
    result = command(
        "-m", "training.fuse", tmp_path / "whole.pth", "--model_id", 7, "--out_file", tmp_path / "fused.pth"
    )
    assert result.returncode == 2
    assert "not plain tensors" in result.stderr
    assert "--trust_checkpoint" not in result.stderr
