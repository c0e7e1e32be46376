"""utils/submission/results_zip.py: the zip that the evaluation server takes."""

import zipfile

import cv2
import numpy as np
import pytest

from tests.helpers import CPU, Enlarge, on_a_full_disk, write_pairs
from utils.data.datasets import open_dataset
from utils.errors import HarnessError
from utils.evaluate.runner import Runner
from utils.record import WeightsInfo
from utils.submission.results_zip import checked, write_results
from utils.submission.team import TeamFile, read_team
from utils.zoo.registry import LoadedModel, find_entry, read_registry


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_pairs(tmp_path / "data", ["0801", "0802"], size=(48, 64)))


@pytest.fixture
def runner():
    weights = WeightsInfo(sha256="f" * 64, provenance="a test's")
    return Runner(LoadedModel(Enlarge(), find_entry(7, read_registry()), weights), CPU)


@pytest.mark.parametrize(
    ("keep_suffix", "names"), [(False, ["0801.png", "0802.png"]), (True, ["0801x4.png", "0802x4.png"])]
)
def test_zip_is_flat_and_complete(tmp_path, dataset, runner, keep_suffix, names):
    written = write_results(
        runner, dataset, tmp_path / "out.zip", TeamFile(description="PyTorch,\n fused"), keep_suffix
    )
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert sorted(archive.namelist()) == [*names, "readme.txt"]
        lines = archive.read("readme.txt").decode().splitlines()
        image = cv2.imdecode(np.frombuffer(archive.read(names[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.shape == (48, 64, 3)
    assert lines[0] == f"runtime per image [s] : {written.runtime_s:.4f}"
    assert lines[1:] == [
        "CPU[1] / GPU[0] : 1",
        "Extra Data [1] / No Extra Data [0] : 0",
        "Other description : PyTorch, fused",
    ]
    assert written.images == 2
    assert written.psnr is not None


def test_interrupted_run_goes_on(tmp_path, dataset, runner, monkeypatch):
    passes = []

    def forward(lr, real=runner.forward):
        passes.append(lr.shape)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return real(lr)

    monkeypatch.setattr(runner, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    assert not (tmp_path / "out.zip").exists()
    write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    assert len(passes) == 3


def test_images_of_other_code_are_made_again(tmp_path, dataset, runner, monkeypatch):
    write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    monkeypatch.setattr(runner, "forward", None)  # not called: what was restored is taken
    write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    monkeypatch.setattr("utils.submission.results_zip.sources_sha256", lambda entry: "of an edited file")
    with pytest.raises(HarnessError):
        write_results(runner, dataset, tmp_path / "out.zip", TeamFile())


def test_network_without_weights_gives_no_zip(tmp_path, dataset, runner):
    runner.weights.missing_weights = "w.pth: no checkpoint"
    with pytest.raises(HarnessError, match=r"w\.pth: no checkpoint; give weights"):
        write_results(runner, dataset, tmp_path / "out.zip", TeamFile())


def test_zip_with_something_else_is_refused(tmp_path, dataset, runner):
    write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    with zipfile.ZipFile(tmp_path / "out.zip", "a") as archive:
        archive.writestr("notes.txt", "x")
    names = {pair.name: pair for pair in dataset.pairs}
    with pytest.raises(HarnessError, match="holds 4 files, expected 3"):
        list(checked(tmp_path / "out.zip", names))


@pytest.mark.parametrize(
    ("text", "words"), [("extra_dta = true", "extra_dta"), ("extra_data = 3", "extra_data: "), ("=", "not valid TOML")]
)
def test_team_file_with_a_mistake_costs_a_line(tmp_path, text, words):
    (tmp_path / "team.toml").write_text(text)
    with pytest.raises(HarnessError, match=words):
        read_team(tmp_path / "team.toml")


def test_command_tells_what_the_zip_has(command, tmp_path, dataset):
    words = ("results", "--model_id", 126, "--data_dir", tmp_path / "data", "--device", "cpu", "--out_file", "r.zip")
    result = command("-m", "utils.submission", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "r.zip: 2 images and readme.txt" in result.stdout
    assert "Read back:" in result.stdout


def test_full_disk_costs_a_line_and_what_was_restored_stays(tmp_path, dataset, runner, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "write", on_a_full_disk)
    with pytest.raises(HarnessError, match=r"out\.zip: cannot be written \(No space left on device\)"):
        write_results(runner, dataset, tmp_path / "out.zip", TeamFile())
    assert not (tmp_path / "out.zip").exists()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_folder_that_cannot_be_written_costs_a_line(tmp_path, dataset, runner):
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(HarnessError, match="cannot be written"):
        write_results(runner, dataset, tmp_path / "a" / "out.zip", TeamFile())


def test_half_a_data_set_costs_a_line(command, tmp_path):
    data = write_pairs(tmp_path / "data", ["0801", "0802"], size=(48, 64))
    (data / "LR" / "0802x4.png").unlink()
    result = command("-m", "utils.submission", "results", "--model_id", 7, "--data_dir", data, cwd=tmp_path)
    assert result.returncode == 2
    assert "0802" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "submissions").exists()
