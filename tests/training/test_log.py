"""training/log.py: a run's rows outlive kills, and a disk that fills."""

import os

import pytest

from tests.helpers import on_a_full_disk
from training.log import TrainingLog, read_log
from utils.errors import HarnessError


@pytest.fixture
def folder(tmp_path):
    """A run's folder with four rows, of steps 1 to 4."""
    log = TrainingLog(tmp_path, 0)
    for step in range(1, 5):
        log.write(step, loss=1 / step, gradient_norm=2.0, learning_rate=1e-3, seconds=step, validation_psnr=20.0)
    log.close()
    return tmp_path


def steps(folder):
    return [row["step"] for row in read_log(folder / "log.csv")]


def test_rows_past_the_checkpoint_are_cut(folder):
    log = TrainingLog(folder, 3)
    assert log.first_loss == 1.0
    log.write(4, loss=0.1, gradient_norm=2.0, learning_rate=1e-3, seconds=4)
    log.close()
    rows = read_log(folder / "log.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [
        (1, "1.000000"),
        (2, "0.500000"),
        (3, "0.333333"),
        (4, "0.100000"),
    ]
    assert (folder / "curves.png").stat().st_size > 1000


def test_rows_are_on_disk_before_a_resumed_run_writes_its_first(folder):
    log = TrainingLog(folder, 3)
    assert steps(folder) == [1, 2, 3]
    log.close()


def test_full_disk_at_the_start_of_a_resumed_run_keeps_the_rows(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", on_a_full_disk)
    with pytest.raises(HarnessError, match="make room"):
        TrainingLog(folder, 3)
    assert steps(folder) == [1, 2, 3, 4]


def test_row_cut_short_by_a_full_disk_is_no_row(folder):
    path = folder / "log.csv"
    path.write_text(path.read_text() + "10,0.0")  # of step 100, say
    assert steps(folder) == [1, 2, 3, 4]
    TrainingLog(folder, 50).close()
    assert steps(folder) == [1, 2, 3, 4]


def test_full_disk_costs_one_line(folder, monkeypatch):
    log = TrainingLog(folder, 4)
    monkeypatch.setattr(log.file, "flush", on_a_full_disk)
    with pytest.raises(HarnessError, match=r"cannot be written .* make room, or choose another --run_dir"):
        log.write(5, loss=0.1, gradient_norm=2.0, learning_rate=1e-3, seconds=5)
