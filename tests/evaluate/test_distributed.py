"""utils/evaluate/distributed.py: an evaluation by several processes ends in the results of one."""

import os

import pytest
import torch

from models.team07_NanoSR import NanoSR_inference
from tests.helpers import python, stored, two_processes, write_pairs
from utils.data.datasets import open_dataset
from utils.evaluate.distributed import World, interleave
from utils.files import ROOT

LEAVES_A_GROUP = """
from pathlib import Path

import torch

from utils.evaluate.distributed import process_group

with process_group("gloo", 2):
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer imports the rest of torch
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in names), names
"""


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_put_together_are_the_whole(tmp_path, world):
    dataset = open_dataset(write_pairs(tmp_path, list("abcde"), size=(32, 32)))
    parts = [list(World(rank, world).part_of(dataset).pairs) for rank in range(world)]
    assert interleave(parts) == list(dataset.pairs)


@pytest.mark.slow
def test_group_leaves_no_threads_behind(tmp_path):
    (tmp_path / "leave.py").write_text(LEAVES_A_GROUP)
    result = python(*two_processes(), tmp_path / "leave.py", env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["a", "b"])  # the first process's image, and the other's
def test_process_that_fails_does_not_leave_the_other_waiting(tmp_path, broken):
    data = write_pairs(tmp_path / "data", ["a", "b"], size=(48, 64))
    (data / "HR" / f"{broken}.png").write_bytes(b"no image")
    words = ("eval.py", "--device", "cpu", "--data_dir", data, "--model_id", 126, "--results", tmp_path / "results")
    result = python(*two_processes(), *words)
    assert result.returncode != 0
    assert f"error: {data}/HR/{broken}.png: not a readable image" in result.stderr


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path):
    data = write_pairs(tmp_path / "data", list("abcde"), size=(48, 64))
    torch.save(NanoSR_inference().state_dict(), tmp_path / "random.pth")
    arguments = [
        "eval.py", "--device", "cpu", "--data_dir", data, "--model_id", 7, "--checkpoint", tmp_path / "random.pth",
        "--runs", 2, "--repeats", 2, "--save_images", "--results",
    ]  # fmt: skip
    for launcher, name in (([], "one"), (two_processes(), "two")):
        # One thread each, as torchrun has it: another number adds up a convolution in another order.
        result = python(*launcher, *arguments, tmp_path / name, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
    one, two = (stored(tmp_path / name)["NanoSR_inference"] for name in ("one", "two"))
    assert two["images"] == one["images"]
    assert two["complexity"] == one["complexity"]
    assert two["status"] == "complete"
    assert [len(run) for run in two["runtime"]["runs"]] == [5, 5]
    assert two["runtime"]["processes"] == 2
    assert [len(list(folder.iterdir())) for folder in (tmp_path / "two" / "images").iterdir()] == [5]
