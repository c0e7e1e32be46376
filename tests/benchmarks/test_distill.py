"""benchmarks/studies/distill.py: a prepared set whose HR images a teacher made."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.studies.distill import SelfEnsemble
from training.data.subimages import SubImages, verify

BILINEAR = """
import torch
import torch.nn.functional as F
from torch import nn


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, lr):
        return self.scale * F.interpolate(lr, scale_factor=4, mode="bilinear")
"""


@pytest.fixture
def teacher(tmp_path):
    """Arguments that name a teacher whose images OpenCV makes, too."""
    file, checkpoint = tmp_path / "bilinear.py", tmp_path / "bilinear.pth"
    file.write_text(BILINEAR)
    torch.save({"scale": torch.ones(1)}, checkpoint)
    return "--model_file", file, "--checkpoint", checkpoint


@pytest.mark.parametrize(("share", "rest"), [(1.0, 0.0), (0.25, 0.75)])
def test_hr_is_the_teachers_and_the_rest_as_it_was(command, prepared, teacher, tmp_path, share, rest):
    out = tmp_path / "out"
    result = command(
        "-m", "benchmarks.studies.distill", "--train_dir", prepared, "--out", out, *teacher, "--share", share
    )
    assert result.returncode == 0, result.stderr
    verify(out)
    before, after = SubImages(prepared), SubImages(out)
    assert np.array_equal(after.shapes, before.shapes)
    for number, (height, width) in enumerate(before.shapes):
        lr, hr = before.pair(number)
        expected = share * cv2.resize(lr, (int(width), int(height)), interpolation=cv2.INTER_LINEAR) + rest * hr
        assert np.array_equal(after.pair(number)[0], lr)
        assert np.abs(after.pair(number)[1] - expected).max() <= 1.01  # both round


def test_a_stopped_run_goes_on_and_another_teacher_is_refused(command, prepared, teacher, tmp_path):
    out = tmp_path / "out"
    run = "-m", "benchmarks.studies.distill", "--train_dir", prepared, "--out", out, *teacher
    assert command(*run).returncode == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    kept = (out / "shard-00000.hr").stat().st_mtime_ns
    for name in ("index.json", "shard-00001.json", "shard-00001.hr"):
        (out / name).unlink()
    assert command(*run).returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert (out / "shard-00000.hr").stat().st_mtime_ns == kept
    result = command(*run, "--share", 0.5)
    assert result.returncode == 2
    assert "made from other images or settings; choose an empty --out" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", 0), "--share 0.0: expected more than 0 and at most 1"),
        (("--model_id", 7), "name one model, by --model_id or by --model_file"),
    ],
)
def test_wrong_arguments_are_named(command, prepared, teacher, tmp_path, arguments, message):
    result = command(
        "-m", "benchmarks.studies.distill", "--train_dir", prepared, "--out", tmp_path / "out", *teacher, *arguments
    )
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("F.interpolate(lr, scale_factor=2)", "bilinear.py: output is (1, 3, 32, 32) for an LR image of 16 x 16"),
        ("lr.no_such_thing", "bilinear.py: fails on an LR image of 16 x 16"),
    ],
)
def test_a_teacher_that_does_not_upscale_is_named(command, prepared, teacher, tmp_path, network, message):
    file = tmp_path / "bilinear.py"
    file.write_text(BILINEAR.replace(BILINEAR.split("return ")[1], network + "\n"))
    result = command("-m", "benchmarks.studies.distill", "--train_dir", prepared, "--out", tmp_path / "out", *teacher)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 300
    assert not (tmp_path / "out" / "index.json").exists()


def test_the_set_that_is_read_is_not_overwritten(command, prepared, teacher):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    result = command("-m", "benchmarks.studies.distill", "--train_dir", prepared, "--out", prepared, *teacher)
    assert result.returncode == 2
    assert "is the set that is read" in result.stderr
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


def test_the_mean_over_orientations_turns_with_the_image():
    network = torch.nn.Conv2d(3, 3, 3, padding=1)  # as its random kernels, it prefers a direction
    lr = torch.rand(1, 3, 8, 6)
    expected = SelfEnsemble(network)(lr)
    assert torch.allclose(SelfEnsemble(network)(lr.flip(2)), expected.flip(2), atol=1e-6)
    assert torch.allclose(SelfEnsemble(network)(lr.flip(3)), expected.flip(3), atol=1e-6)
    assert torch.allclose(SelfEnsemble(network)(lr.transpose(2, 3)), expected.transpose(2, 3), atol=1e-6)
    assert not torch.allclose(network(lr.flip(3)), network(lr).flip(3), atol=1e-3)
