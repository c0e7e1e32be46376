"""utils/zoo/checkpoints.py: what loads, what is refused, and that nothing is ever run."""

import pytest
import torch
from torch import nn

from utils.errors import HarnessError
from utils.zoo.checkpoints import load_state_dict, load_strictly


@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict", "model"])
def test_plain_and_wrapped_weights_load(tmp_path, wrapper):
    state = nn.Conv2d(2, 3, 1).state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "weights.pth")
    loaded = load_state_dict(tmp_path / "weights.pth")
    assert torch.equal(loaded["weight"], state["weight"])


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path):
    torch.save({"weight": torch.zeros(1), "trap": Trap(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(HarnessError, match="not plain tensors"):
        load_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def write_text(path):
    path.write_text("these are not weights")


def write_half(path):
    torch.save(nn.Conv2d(8, 8, 3).state_dict(), path)
    path.write_bytes(path.read_bytes()[:400])


def write_module(path):
    torch.save(nn.Conv2d(2, 3, 1), path)


def write_list(path):
    torch.save([torch.zeros(2)], path)


def write_number(path):
    torch.save({"epoch": 3}, path)


@pytest.mark.parametrize("write", [write_text, write_half, write_module, write_list, write_number, lambda path: None])
def test_other_files_are_named_and_refused(tmp_path, write):
    write(tmp_path / "bad.pth")
    with pytest.raises(HarnessError, match=r"bad\.pth: "):
        load_state_dict(tmp_path / "bad.pth")


def test_wrong_checkpoint_names_missing_and_unexpected_keys_and_shapes():
    state = nn.Conv2d(2, 3, 1).state_dict()
    state["total_ops"] = torch.zeros(1)
    del state["bias"]
    state["weight"] = torch.zeros(3, 2, 3, 3)
    with pytest.raises(HarnessError) as caught:
        load_strictly(nn.Conv2d(2, 3, 1), state, "x.pth")
    for part in ("x.pth", "1 missing keys: bias", "1 unexpected keys: total_ops", "expected (3, 2, 1, 1)"):
        assert part in str(caught.value)
