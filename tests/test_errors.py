"""utils/errors.py: what a user may type, name or read by costs no traceback."""

import os
import subprocess
import sys

import pytest

from tests.helpers import QUICK, ROOT, model_words, photograph, record, stored, write_model, write_pairs
from utils.data.images import bicubic_downscale, write_png
from utils.errors import HarnessError, exit_on_harness_error
from utils.record import store_record

FOREIGN = os.fsdecode(b"V\xf6gel")  # as in a zip file that was made on another system


def run_main(main):
    with pytest.raises(SystemExit) as stop:
        exit_on_harness_error(main)
    return stop.value.code


def test_error_is_a_line_and_a_status(capsys):
    def main():
        raise HarnessError("a.png: broken;\nreplace it")

    assert run_main(main) == 2
    assert capsys.readouterr().err == "error: a.png: broken; replace it\n"


def test_want_of_a_temporary_folder_is_told_with_what_to_do(capsys):
    def main():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    assert run_main(main) == 2
    assert "set TMPDIR to one that can" in capsys.readouterr().err


def test_other_errors_are_seen():
    with pytest.raises(ZeroDivisionError):
        exit_on_harness_error(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("command", "reads", "environment"),
    [
        ("print('one'); print('two' * 9999); print('three' * 9999)", False, {}),
        ("print('one')", False, {}),
        ("print('\\u9ce5')", True, {"PYTHONIOENCODING": "latin-1"}),
        ("print('V\\udcf6gel')", True, {}),
    ],
    ids=["head of much", "head of little", "terminal", "name"],
)
def test_reader_that_leaves_and_terminal_that_cannot_show_are_no_error(command, reads, environment):
    code = f"from utils.errors import exit_on_harness_error\ndef main():\n    {command}\nexit_on_harness_error(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if not reads:
        process.stdout.close()  # as `head` does
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.fixture
def foreign_pairs(tmp_path):
    """A data folder whose name, and that of an image in it, are not UTF-8."""
    folder = tmp_path / os.fsdecode(b"b\xf6se")
    hr = photograph(64, 96)
    write_png(folder / "HR" / f"{FOREIGN}.png", hr)
    write_png(folder / "LR" / f"{FOREIGN}x4.png", bicubic_downscale(hr))
    return folder


@pytest.mark.parametrize(
    "more",
    [
        ("--report", "page"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--score",), marks=pytest.mark.slow),
    ],
    ids=lambda words: " ".join(words) or "alone",
)
def test_names_that_are_not_utf_8_are_measured_and_shown(command, foreign_pairs, tmp_path, more):
    words = ("--data_dir", foreign_pairs, "--model_id", 126, "--save_images", *more)
    result = command("eval.py", *QUICK, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert r"b\xf6se (1 images)" in result.stdout
    assert stored(tmp_path / "results")["SPAN"]["images"]["psnr"][0] > 15


def test_organizers_command_takes_names_that_are_not_utf_8(command, foreign_pairs, tmp_path):
    words = ("--data_dir", foreign_pairs, "--save_dir", tmp_path / "S", "--model_id", 126, "--device", "cpu")
    result = command("test_demo.py", *words, "--save_images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_training_set_takes_names_that_are_not_utf_8(command, foreign_pairs, tmp_path):
    words = ("--hr", foreign_pairs / "HR", "--out", tmp_path / "out", "--processes", 1, "--smallest", 32)
    result = command("-m", "training.prepare", *words)
    assert result.returncode == 0, result.stderr


EARLIER = {
    ("eval.py", "--trust-checkpoint"): "is called --trust_checkpoint now",
    ("eval.py", "--dataset=test"): "is called --split now",
    ("eval.py", "--class"): "belongs into a TOML file beside the model's",
    ("train.py", "--minutes"): "is called --time_limit now",
    ("train.py", "--workers"): "is called --feed_threads now",
    ("train.py", "--data"): "is called --train_dir now",
}


@pytest.mark.parametrize("words", EARLIER, ids=" ".join)
def test_earlier_name_of_an_option_is_told(command, tmp_path, words):
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {words[1].partition('=')[0]}: {EARLIER[words]}")


def test_model_is_named_in_one_way(command, tmp_path, pairs):
    words = model_words(write_model(tmp_path))
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, "--model_id", 7, cwd=tmp_path)
    assert result.returncode == 2
    assert "leave it out with --model_file" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--data_dir", "data", "--hr", "data/HR"),
        ("--model_id", 126, "--repository", "."),
        ("--repository", ".", "--checkpoint", "w.pth"),
        ("--register", 4242),
        ("--show", "--backend", "fast"),
        ("--model_id", 126, 7, "--checkpoint", "w.pth"),
        ("--edition", 2026),
        ("--time_limit", 5),
        ("--memory_limit", 5),
        ("--sandbox", "off"),
        *(("--show", option, 1) for option in ("--runs", "--warmup", "--repeats", "--workers", "--time_limit")),
        *(("--show", option) for option in ("--fresh", "--save_images", "--isolated", "--sandbox=off", "--device=cpu")),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_options_that_exclude_each_other_are_refused(command, tmp_path, words):
    write_pairs(tmp_path / "data", ["a"])
    result = command("eval.py", *words, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        ("factsheet", "--data_dir", "x"),
        ("factsheet", "--out_file", "x"),
        ("factsheet", "--edition", 2025),
        ("check", "--results", "x"),
        ("results", "--requirements", "x"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_options_of_another_step_of_a_submission_are_refused(command, tmp_path, words):
    data = ("--data_dir", "d") if words[0] == "results" else ()
    result = command("-m", "utils.submission", *words, *data, "--model_id", 7, cwd=tmp_path)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert f"{words[1]}: is for --team; add it" in last or f"unrecognized arguments: {words[1]} x" in last


def test_folders_by_name_are_measured(command, tmp_path):
    data = write_pairs(tmp_path / "data", ["a"])
    words = ("--model_id", 126, "--hr", data / "HR", "--lr", data / "LR")
    first = command("eval.py", *QUICK, *words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    made = command("eval.py", *QUICK, *words[:-2], cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "; LR images are made from the HR images, by MATLAB's bicubic" in made.stdout


def test_help_comes_before_anything_heavy_is_imported():
    code = (
        "import runpy, sys; sys.argv = ['eval.py', '--help']\n"
        "try: runpy.run_path('eval.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'numpy', 'cv2', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.endswith("heavy: []\n"), run.stderr


def test_results_with_such_names_are_shown_again(command, tmp_path):
    store_record(tmp_path / "results" / "records.json", "registry 42", record(dataset={"folder": FOREIGN}))
    assert command("eval.py", "--show", cwd=tmp_path).returncode == 0
