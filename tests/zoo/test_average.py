"""utils/zoo/average.py: the mean of several checkpoints."""

import pytest
import torch

from utils.zoo.average import averaged
from utils.zoo.checkpoints import load_state_dict


def save(path, **tensors):
    torch.save(tensors, path)
    return path


def test_the_command_writes_the_mean(command, tmp_path):
    paths = [
        save(tmp_path / f"{number}.pth", weight=torch.full((2, 3), value), steps=torch.tensor(number))
        for number, value in enumerate([1.0, 2.0, 6.0])
    ]
    result = command("-m", "utils.zoo.average", *paths, "--out_file", tmp_path / "made" / "mean.pth")
    assert result.returncode == 0, result.stderr
    mean = load_state_dict(tmp_path / "made" / "mean.pth")
    assert torch.equal(mean["weight"], torch.full((2, 3), 3.0))
    assert mean["steps"] == 0  # a count is no weight


def test_half_precision_is_summed_in_double(tmp_path):
    paths = [save(tmp_path / f"{number}.pth", weight=torch.full((1,), 60000.0).half()) for number in range(4)]
    assert averaged(paths)["weight"].item() == torch.tensor(60000.0).half().item()  # the sum is no float16


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"weight": torch.zeros(3, 2)}, "weight is (3, 2), expected (2, 3)"),
        ({"bias": torch.zeros(2, 3)}, "1 missing keys: weight; 1 unexpected keys: bias"),
        (None, "the only one"),
    ],
)
def test_networks_that_differ_are_named(command, tmp_path, other, reason):
    paths = [save(tmp_path / "a.pth", weight=torch.zeros(2, 3))]
    paths += [save(tmp_path / "b.pth", **other)] if other else []
    result = command("-m", "utils.zoo.average", *paths, "--out_file", tmp_path / "mean.pth")
    assert result.returncode == 2
    assert reason in result.stderr
    assert not (tmp_path / "mean.pth").exists()
