"""utils/worker/selection.py: how the worker reads an organizers' checkpoints."""

import pickle

import numpy as np
import pytest
import torch

from utils.errors import HarnessError
from utils.worker.selection import SafeLoad


def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path):
    torch.save({"w": torch.ones(2), "best": np.float64(26.9)}, tmp_path / "w.pth")
    load = SafeLoad("cpu", trust=False)
    assert load(tmp_path / "w.pth")["best"] == 26.9
    assert load.paths == [str(tmp_path / "w.pth")]


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04 cut short", b""])
def test_broken_file_is_not_taken_for_code(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    for trust in (False, True):
        with pytest.raises(HarnessError, match=r"w\.pth: not a readable checkpoint"):
            SafeLoad("cpu", trust)(tmp_path / "w.pth")


def test_code_is_run_only_if_it_is_trusted(tmp_path):
    torch.save({"w": torch.ones(2), "path": tmp_path}, tmp_path / "w.pth", pickle_module=pickle)
    with pytest.raises(HarnessError, match="add --trust_checkpoint"):
        SafeLoad("cpu", trust=False)(tmp_path / "w.pth")
    load = SafeLoad("cpu", trust=True)
    assert load(tmp_path / "w.pth")["path"] == tmp_path
    assert load.notes == ["w.pth was unpickled as a whole, since --trust_checkpoint allows it"]


def test_open_file_is_trusted_as_little_and_told_as_well(tmp_path):
    torch.save({"w": torch.ones(2), "path": tmp_path}, tmp_path / "w.pth", pickle_module=pickle)
    with open(tmp_path / "w.pth", "rb") as file, pytest.raises(HarnessError, match="add --trust_checkpoint"):
        SafeLoad("cpu", trust=False)(file)
    load = SafeLoad("cpu", trust=True)
    with open(tmp_path / "w.pth", "rb") as file:
        assert load(file)["path"] == tmp_path
    assert load.notes == ["an open file was unpickled as a whole, since --trust_checkpoint allows it"]


def test_open_file_of_plain_tensors_is_read_as_such_even_where_it_is_trusted(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    load = SafeLoad("cpu", trust=True)
    with open(tmp_path / "w.pth", "rb") as file:
        assert torch.equal(load(file)["w"], torch.ones(2))
    assert load.notes == []
