"""Strangers' models by --model_file: what real submissions hold gives a row, or one clear line."""

import json

import pytest
import torch
from torch import nn

from utils.zoo.registry import build_model, entry_from_file

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels * 12, 3, padding=1)
        self.up = nn.PixelShuffle(4)
        {constructor}

    def forward(self, x):
        {forward}
        return self.up(self.conv(x))
"""


@pytest.fixture
def submit(tmp_path, pairs, command):
    """Writes a model file and a checkpoint, and runs eval.py on them."""

    def run(*arguments, name="team42_Net.py", constructor="pass", forward="pass", change=lambda state: state):
        file = tmp_path / name
        file.write_text(NETWORK.format(constructor=constructor, forward=forward))
        convolution = nn.Conv2d(3, 48, 3, padding=1)
        torch.save(
            change({f"conv.{key}": value for key, value in convolution.state_dict().items()}), tmp_path / "w.pth"
        )
        return command(
            "eval.py", "--device", "cpu", "--data_dir", pairs, "--runs", 1, "--repeats", 1, "--model_file", file,
            "--class", "Net", "--checkpoint", tmp_path / "w.pth", *arguments, cwd=tmp_path,
        )  # fmt: skip

    return run


def stored(tmp_path, name="Net"):
    return json.loads((tmp_path / "results" / "records.json").read_text())["models"][name]


ACCEPTED = {
    "plain": {},
    "under params": {"change": lambda state: {"params": state}},
    "under params_ema": {"change": lambda state: {"params": {}, "params_ema": state}},
    "half precision": {"change": lambda state: {key: value.half() for key, value in state.items()}},
    "name with brackets": {"name": " [net] (final).py"},
    "reads the command line": {"constructor": "import argparse; argparse.ArgumentParser().parse_args()"},
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_usual_submissions_give_a_row(submit, tmp_path, kind):
    result = submit(**ACCEPTED[kind])
    assert result.returncode == 0, result.stderr
    record = stored(tmp_path)
    assert record["complexity"]["params"] == 3 * 48 * 9 + 48
    assert len(record["images"]["psnr"]) == 2


def test_arguments_and_state_key_and_range(submit, tmp_path):
    result = submit(
        "--args", '{"channels": 4}', "--state_key", "net_g", "--data_range", 255, change=lambda state: {"net_g": state}
    )
    assert result.returncode == 0, result.stderr
    assert stored(tmp_path)["model"]["data_range"] == 255
    assert (stored(tmp_path)["model"]["id"], stored(tmp_path)["model"]["name"]) == (42, "Net")


@pytest.mark.parametrize("arguments", ["[3, 4]", '{"*": [3], "channels": 4}', '{"colours": 3, "channels": 4}'])
def test_arguments_come_by_place_by_name_or_both(tmp_path, arguments):
    network = NETWORK.replace("channels=4", "colours, channels").replace("Conv2d(3,", "Conv2d(colours,")
    (tmp_path / "net.py").write_text(network.format(constructor="pass", forward="pass"))
    (tmp_path / "w.pth").touch()
    entry = entry_from_file(tmp_path / "net.py", "Net", json.loads(arguments), tmp_path / "w.pth")
    assert build_model(entry).conv.weight.shape == (48, 3, 3, 3)


def test_register_writes_the_registry_once_the_model_has_run(submit, tmp_path, monkeypatch):
    registered = []
    monkeypatch.setattr("utils.zoo.registry.register", registered.append)
    assert submit("--register", 42, forward="return x").returncode == 2
    assert submit("--register", 42, "--isolated", forward="return x").returncode == 1
    assert not registered
    assert submit("--register", 42).returncode == 0
    assert [(entry.id, entry.name, entry.checkpoint) for entry in registered] == [(42, "Net", str(tmp_path / "w.pth"))]


def extra_key(state):
    return {**state, "total_ops": torch.zeros(1)}


def missing_key(state):
    return {"conv.weight": state["conv.weight"]}


@pytest.mark.parametrize(("change", "part"), [(extra_key, "total_ops"), (missing_key, "conv.bias")])
def test_keys_that_do_not_fit_are_named_or_passed_over_leniently(submit, change, part):
    strict = submit(change=change)
    assert strict.returncode == 2
    assert part in strict.stderr.splitlines()[-1]
    lenient = submit("--lenient", change=change)
    assert lenient.returncode == 0, lenient.stderr
    assert "Net: loaded leniently, 1 " in lenient.stdout
    assert part in lenient.stdout


REFUSED = {
    "missing package": ({"constructor": "import nowhere_to_be_found"}, ["imports nowhere_to_be_found"]),
    "raises in the constructor": ({"constructor": "raise KeyError('cfg')"}, ["cannot build Net", "KeyError"]),
    "needs other sizes": (
        {"forward": "assert x.shape[2] % 64 == 0, 'multiple of 64'"},
        ["fails on an LR image of 24 x 16", "multiple of 64"],
    ),
    "wrong scale": ({"forward": "return x"}, ["output is (1, 3, 16, 24)", "expected (1, 3, 64, 96)"]),
    "gives a list": ({"forward": "return [x]"}, ["output is list"]),
    "pickled module": ({"change": lambda state: nn.Conv2d(1, 1, 1)}, ["w.pth: not plain tensors"]),
    "weights of another net": (
        {"change": lambda state: {"a": torch.zeros(1)}},
        ["2 missing keys", "unexpected keys: a"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_run_costs_one_line(submit, kind):
    changes, parts = REFUSED[kind]
    result = submit(**changes)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


@pytest.mark.parametrize("prefix", ["module.", "net.model."])
def test_keys_that_all_begin_alike_are_told_so(submit, prefix):
    result = submit(change=lambda state: {prefix + key: value for key, value in state.items()})
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].count(f"save it again without the {prefix!r} that each key begins with") == 1


def test_relative_import_is_told_what_to_do(submit):
    result = submit(constructor="from .parts import Part")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].count("put what it imports into it") == 1


def test_cuda_in_the_constructor_costs_one_line_without_a_gpu(submit):
    result = submit(constructor="self.conv.cuda()")
    assert result.returncode == 2
    assert "cannot build Net" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--args", "{"), "not JSON"),
        (("--args", "3"), "neither a list"),
        (("--args", '{"*": 3}'), "a list"),
        (("--state_key", "ema"), "nothing under ema"),
    ],
)
def test_bad_arguments_are_named(submit, arguments, part):
    result = submit(*arguments)
    assert result.returncode == 2
    assert part in result.stderr.splitlines()[-1]
