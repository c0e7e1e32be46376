"""test_demo.py and eval.py as a user runs them."""

import hashlib
import json
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch

from models.team07_NanoSR import NanoSR_inference
from tests.helpers import record, stored, write_pairs
from utils.data.images import read_rgb
from utils.evaluate.metrics import psnr, ssim
from utils.progress import progress
from utils.record import read_results, store_record
from utils.zoo.registry import ModelEntry

FULL_NAME = "07_NanoSR_inference"


@pytest.fixture
def run(command):
    def on_cpu(script, *arguments, cwd):
        return command(script, "--device", "cpu", *arguments, cwd=cwd)

    return on_cpu


def assert_one_line(result, *parts):
    """A fixable error: non-zero exit, no traceback, and a last line that says what is wrong."""
    assert result.returncode not in (0, 1)
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of NanoSR with random weights."""
    torch.save(NanoSR_inference().state_dict(), tmp_path / "random.pth")
    return tmp_path / "random.pth"


def test_organizers_command_gives_their_files(run, tmp_path, weights):
    data = tmp_path / "data"
    write_pairs(data, ["0801", "0000001"], layout=("DIV2K_LSDIR_valid_HR", "DIV2K_LSDIR_valid_LR"))
    write_pairs(data, ["0901"], layout=("DIV2K_LSDIR_test_HR", "DIV2K_LSDIR_test_LR"))
    arguments = ("--data_dir", data, "--save_dir", "S", "--model_id", 7, "--checkpoint", weights)
    result = run("test_demo.py", *arguments, "--include_test", "--ssim", "--save_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    values = json.loads((tmp_path / "results.json").read_text())[FULL_NAME]
    for split, names in (("valid", ["0000001.png", "0801.png"]), ("test", ["0901.png"])):
        quality = [
            (psnr(sr, hr), ssim(sr, hr))
            for name in names
            for sr in [read_rgb(tmp_path / "S" / FULL_NAME / split / name)]
            for hr in [read_rgb(data / f"DIV2K_LSDIR_{split}_HR" / name)]
        ]
        assert values[f"{split}_psnr"] == [pair[0] for pair in quality]
        assert values[f"{split}_ssim"] == [pair[1] for pair in quality]
        assert values[f"{split}_ave_psnr"] == pytest.approx(np.mean(values[f"{split}_psnr"]), abs=1e-12)
        assert values[f"{split}_ave_ssim"] == pytest.approx(np.mean(values[f"{split}_ssim"]), abs=1e-12)
        assert len(values[f"{split}_runtime"]) == len(names)
        assert values[f"{split}_ave_runtime"] == pytest.approx(np.mean(values[f"{split}_runtime"]), abs=1e-9)
        assert values[f"{split}_memory"] > 0
    assert values["activations"] == pytest.approx(88.080384)
    assert values["num_conv"] == 28
    assert values["flops"] == pytest.approx(36.021731328)
    assert values["num_parameters"] == pytest.approx(0.550992)

    table = [line.split("\t") for line in (tmp_path / "results.txt").read_text().splitlines()]
    assert table[0][:6] == ["Model", "Val PSNR", "Test PSNR", "Val Time [ms]", "Test Time [ms]", "Ave Time [ms]"]
    assert table[0][6:] == ["Params [M]", "FLOPs [G]", "Acts [M]", "Mem [M]", "Conv"]
    assert table[1][:3] == [FULL_NAME, f"{values['valid_ave_psnr']:.2f}", f"{values['test_ave_psnr']:.2f}"]
    assert table[1][6:9] == ["0.551", "36.02", "88.08"]
    log = next(tmp_path.glob("*.log")).read_text()
    assert f"0801.png - PSNR: {values['valid_psnr'][1]:.2f} dB; SSIM: {values['valid_ssim'][1]:.4f}." in log


def test_without_save_dir_everything_goes_to_results_and_images_stay_away(run, tmp_path, pairs, weights):
    result = run("test_demo.py", "--data_dir", pairs, "--model_id", 7, "--checkpoint", weights, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "results").iterdir() if not path.name.startswith(".")} == {
        "results.json",
        "results.txt",
        "NTIRE-EfficientSR.log",
    }
    header = (tmp_path / "results" / "results.txt").read_text().splitlines()[0]
    assert header == "Model\tVal PSNR\tVal Time [ms]\tParams [M]\tFLOPs [G]\tActs [M]\tMem [M]\tConv"
    assert "valid_ave_ssim" not in (tmp_path / "results" / "results.json").read_text()


def test_lr_alone_is_restored_and_saved_with_dashes(run, tmp_path, pairs, weights):
    (pairs / "HR").rename(tmp_path / "elsewhere")
    result = run("test_demo.py", "--data_dir", pairs, "--checkpoint", weights, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_rgb(tmp_path / "results" / FULL_NAME / "valid" / "a.png").shape == (64, 96, 3)
    assert (tmp_path / "results" / "results.txt").read_text().splitlines()[1].split("\t")[1] == "-"


def test_hr_alone_is_measured_by_the_organizers_command_with_a_note(run, tmp_path, pairs, weights):
    shutil.rmtree(pairs / "LR")
    result = run("test_demo.py", "--data_dir", pairs, "--checkpoint", weights, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "note: LR images are made from the HR images" in (tmp_path / "results" / "NTIRE-EfficientSR.log").read_text()


def test_eval_measures_everything_and_writes_three_tables(run, tmp_path, pairs, weights):
    arguments = (
        "--data_dir",
        pairs,
        "--model_id",
        7,
        "--checkpoint",
        weights,
        "--runs",
        2,
        "--warmup",
        0,
        "--repeats",
        3,
    )
    result = run("eval.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = stored(tmp_path / "results")["NanoSR_inference"]
    assert record["status"] == "complete"
    assert [len(run_ms) for run_ms in record["runtime"]["runs"]] == [2, 2]
    assert record["runtime"]["steady"]["repeats"] == 3
    assert record["complexity"]["flops"] == 36_021_731_328
    assert record["model"]["sha256"]
    assert record["environment"]["libraries"]["torch"]
    for suffix in ("txt", "md", "tex"):
        assert "NanoSR" in (tmp_path / "results" / f"factsheet.{suffix}").read_text()
    assert "(CPU)" in result.stdout
    assert "data (2 images)" in result.stdout


def test_model_without_weights_is_timed_and_counted(run, tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(ModelEntry, "checkpoint_path", tmp_path / "nowhere.pth")
    result = run("eval.py", "--data_dir", pairs, "--model_id", 0, "--runs", 1, "--repeats", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    row = (tmp_path / "results" / "factsheet.txt").read_text().splitlines()[2].split()
    assert row[:3] == ["EFDN", "-", "-"]
    assert row[5:8] == ["0.276", "16.70", "111.12"]
    assert "no checkpoint" in result.stdout


def test_variant_is_measured_beside_its_plain_form_and_reported(run, tmp_path, pairs, weights):
    arguments = ("--data_dir", pairs, "--model_id", 7, "--precision", "bfloat16", "--runs", 1, "--repeats", 1)
    result = run("eval.py", *arguments, "--report", "page", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "NanoSR_bf16: the function of NanoSR_inference, against it: PSNR " in result.stdout
    page = (tmp_path / "page" / "report.html").read_text()
    assert "NanoSR_bf16 above NanoSR_inference" in page


def test_checkpoint_is_loaded_into_each_form_of_its_model(run, tmp_path, pairs, weights):
    arguments = ("--data_dir", pairs, "--model_id", 7, "--checkpoint", weights, "--backend", "fast", "--runs", 1)
    result = run("eval.py", *arguments, "--repeats", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    records = stored(tmp_path / "results")
    given = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert {name: record["model"]["sha256"] for name, record in records.items()} == {
        "NanoSR_fast": given,
        "NanoSR_inference": given,
    }


def hr_without_lr(folder):
    (folder / "LR" / "bx4.png").unlink()
    return "b.png"


def sizes_that_do_not_fit(folder):
    lr = folder / "LR" / "bx4.png"
    cv2.imwrite(str(lr), read_rgb(lr)[:-1])
    return "bx4.png"


def truncated(folder):
    hr = folder / "HR" / "b.png"
    hr.write_bytes(hr.read_bytes()[:200])
    return "b.png"


def sixteen_bit(folder):
    cv2.imwrite(str(folder / "LR" / "bx4.png"), np.zeros((16, 24, 3), np.uint16))
    return "bx4.png"


@pytest.mark.parametrize("damage", [hr_without_lr, sizes_that_do_not_fit, truncated, sixteen_bit])
def test_bad_data_costs_one_line_and_no_result(run, tmp_path, pairs, weights, damage):
    name = damage(pairs)
    results = tmp_path / "results" / "records.json"
    results.parent.mkdir()
    store_record(results, "Earlier", record())
    assert_one_line(run("eval.py", "--data_dir", pairs, "--model_id", 7, "--checkpoint", weights, cwd=tmp_path), name)
    assert read_results(results) == {"Earlier": record()}
    if damage is not hr_without_lr:
        partial = stored(results.parent, "incomplete")["NanoSR_inference"]
        assert partial["images"]["name"] == ["a.png"]
        assert name in partial["reason"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--data_dir", "nowhere"), ("nowhere", "no such folder")),
        (("--model_id", 99), ("99", "models.toml")),
        (("--checkpoint", "gone.pth"), ("gone.pth", "no such checkpoint")),
    ],
)
@pytest.mark.parametrize("script", ["test_demo.py", "eval.py"])
def test_bad_arguments_cost_one_line(run, tmp_path, pairs, script, arguments, parts):
    defaults = {"--data_dir": pairs, "--model_id": 7} | dict([arguments])
    assert_one_line(run(script, *(word for pair in defaults.items() for word in pair), cwd=tmp_path), *parts)


@pytest.mark.parametrize(
    "words",
    [
        ("eval.py", "--workers", -1),
        ("eval.py", "--time_limit", "nan"),
        ("eval.py", "--memory_limit", 0),
        ("train.py", "recipe.toml", "--feed_threads", -1),
        ("-m", "training.prepare", "--hr", ".", "--out", "o", "--processes", 0),
        ("-m", "training.prepare", "--hr", ".", "--out", "o", "--images_per_shard", 0),
        ("-m", "training.prepare", "--hr", ".", "--out", "o", "--step", 484),
        ("-m", "training.data.graphics", "--out", "o", "--count", 0),
        ("-m", "training.data.graphics", "--out", "o", "--seed", -1),
        ("-m", "benchmarks.training", "--rounds", 0),
    ],
    ids=lambda words: f"{words[-4 if words[0] == '-m' else 0]} {words[-2]}",
)
def test_number_that_cannot_be_is_named(command, tmp_path, words):
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert words[-2] in result.stderr.splitlines()[-1]


def test_model_named_twice_is_one_row(command, tmp_path, pairs):
    words = ("--model_id", 126, 126, "--data_dir", pairs, "--runs", 1, "--warmup", 0, "--repeats", 1, "--device", "cpu")
    result = command("eval.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sum(line.startswith("SPAN  ") for line in result.stdout.splitlines()) == 1


def test_model_that_fails_costs_its_row_and_the_others_keep_theirs(command, tmp_path):
    data = write_pairs(tmp_path / "data", ["a"], size=(20, 20))  # EFDN pools what is not there any more
    words = ("--data_dir", data, "--model_id", 0, 126, "--runs", 1, "--repeats", 1, "--device", "cpu")
    result = command("eval.py", *words, "--report", "page", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert re.search(r"EFDN +models/team00_EFDN\.py: fails on an LR image of 5 x 5, a.png", result.stdout)
    assert stored(tmp_path / "results").keys() == {"SPAN"}
    assert "SPAN" in (tmp_path / "page" / "report.html").read_text()
    scored = command("eval.py", *words, "--score", "--edition", 2025, "--report", "other", cwd=tmp_path)
    assert_one_line(scored, "the baseline of 2025, EFDN, was not measured")
    assert (tmp_path / "other" / "report.html").exists()


def test_results_that_cannot_be_used_stop_before_the_work(run, tmp_path, pairs, weights):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "records.json").write_text('{"schema": 0}')
    result = run("eval.py", "--data_dir", pairs, "--model_id", 7, "--checkpoint", weights, cwd=tmp_path)
    assert_one_line(result, "records.json", "another version")


def test_broken_results_json_stops_test_demo_before_the_work(run, tmp_path, pairs, weights):
    (tmp_path / "results.json").write_text('{"07_NanoSR"')
    result = run("test_demo.py", "--data_dir", pairs, "--save_dir", "S", "--checkpoint", weights, cwd=tmp_path)
    assert_one_line(result, "results.json", "not valid JSON")
    assert (tmp_path / "results.json").read_text() == '{"07_NanoSR"'


def test_output_folder_that_cannot_be_written_is_named(run, tmp_path, pairs, weights):
    (tmp_path / "results").write_text("a file where the folder should be")
    arguments = ("--data_dir", pairs, "--model_id", 7, "--checkpoint", weights)
    assert_one_line(run("eval.py", *arguments, cwd=tmp_path), "results", "cannot be")
    assert_one_line(run("test_demo.py", *arguments, cwd=tmp_path), "results", "cannot be written")


def test_wrong_checkpoint_names_its_keys(run, tmp_path, pairs):
    torch.save({"conv_1.conv.weight": torch.zeros(48, 3, 3, 3), "extra": torch.zeros(1)}, tmp_path / "wrong.pth")
    arguments = ("--data_dir", pairs, "--model_id", 7, "--checkpoint", "wrong.pth")
    assert_one_line(run("eval.py", *arguments, cwd=tmp_path), "wrong.pth", "55 missing keys", "extra")


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.1), (False, 30)])
def test_bar_moves_on_a_terminal_and_spares_a_log(monkeypatch, terminal, seconds):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert progress(range(50)).mininterval == seconds  # between two states


COMMANDS = (
    "eval.py", "train.py", "test_demo.py", "training.prepare", "training.fuse", "training.data.graphics",
    "training.data.compress", "utils.upscale", "utils.submission", "utils.challenge.score_tables",
    "utils.zoo.average", "utils.data.sample",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command_and_explains_each_option(command, tmp_path, name):
    words = [name] if name.endswith(".py") else ["-m", name]
    result = command(*words, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "__main__" not in result.stdout
    assert len(re.findall(rf"python (-m )?{re.escape(name)}", result.stdout)) >= 2 + (name != "utils.data.sample")
    options = re.split(r"\n  (?=-|[A-Z])", result.stdout.partition("options:")[2].partition("examples:")[0])[1:]
    assert len(options) > 0
    assert not [option for option in options if not re.search(r"(?m)(^|\s)[a-z(]", option)]
