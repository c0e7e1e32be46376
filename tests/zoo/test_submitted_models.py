"""Submitted models by --model_file: what real submissions hold gives a row, or one clear line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers import QUICK, model_words, network_weights, stored, write_model, write_table
from utils.errors import HarnessError
from utils.request import network_class
from utils.zoo.registry import Origin, build_model, entry_from_file

WEIGHTS = network_weights()

ACCEPTED = {
    "plain": {},
    "under params": {"weights": {"params": WEIGHTS}},
    "under params_ema": {"weights": {"params": {}, "params_ema": WEIGHTS}},
    "half precision": {"weights": {key: value.half() for key, value in WEIGHTS.items()}},
    "name with brackets": {"file": " [net] (final).py"},
    "reads the command line": {"constructor": "import argparse; argparse.ArgumentParser().parse_args()"},
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_usual_submissions_give_a_row(submit, tmp_path, kind):
    result = submit(**ACCEPTED[kind])
    assert result.returncode == 0, result.stderr
    record = stored(tmp_path / "results")["Net"]
    assert record["complexity"]["params"] == 3 * 48 * 9 + 48
    assert len(record["images"]["psnr"]) == 2


def test_arguments_and_state_key_and_range(submit, tmp_path):
    write_table(tmp_path / "team42_Net.py", arguments={"channels": 4}, state_key="net_g", data_range=255)
    result = submit(parameters=", channels=4", weights={"net_g": WEIGHTS})
    assert result.returncode == 0, result.stderr
    assert stored(tmp_path / "results")["Net"]["model"]["data_range"] == 255
    assert (
        stored(tmp_path / "results")["Net"]["model"]["id"],
        stored(tmp_path / "results")["Net"]["model"]["name"],
    ) == (42, "Net")


@pytest.mark.parametrize("arguments", ["[3, 4]", '{"*": [3], "channels": 4}', '{"colours": 3, "channels": 4}'])
def test_arguments_come_by_place_by_name_or_both(tmp_path, arguments):
    file, weights = write_model(
        tmp_path, parameters=", colours, channels", constructor="self.given = colours, channels"
    )
    assert build_model(entry_from_file(file, "Net", json.loads(arguments), weights)).given == (3, 4)


def test_register_writes_the_registry_once_the_model_has_run(submit, tmp_path, monkeypatch):
    registered = []
    monkeypatch.setattr("utils.measuring.register", registered.append)
    assert submit("--register", 42, forward="return x").returncode == 2
    assert submit("--register", 42, "--isolated", forward="return x").returncode == 1
    assert not registered
    assert submit("--register", 42).returncode == 0
    assert [(entry.id, entry.name, entry.checkpoint) for entry in registered] == [(42, "Net", str(tmp_path / "w.pth"))]


EXTRA = {**WEIGHTS, "total_ops": torch.zeros(1)}
MISSING = {"conv.weight": WEIGHTS["conv.weight"]}


@pytest.mark.parametrize(("weights", "part"), [(EXTRA, "total_ops"), (MISSING, "conv.bias")], ids=["extra", "missing"])
def test_keys_that_do_not_fit_are_named_or_passed_over_leniently(submit, tmp_path, weights, part):
    strict = submit(weights=weights)
    assert strict.returncode == 2
    assert part in strict.stderr.splitlines()[-1]
    write_table(tmp_path / "team42_Net.py", lenient=True)
    lenient = submit(weights=weights)
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
    "pickled module": ({"weights": nn.Conv2d(1, 1, 1)}, ["w.pth: not plain tensors"]),
    "weights of another net": (
        {"weights": {"a": torch.zeros(1)}},
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


@pytest.mark.parametrize("more", [{}, {"epoch": torch.ones(1)}], ids=["alone", "beside others"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.model."])
def test_prefix_of_the_keys_is_taken_off_and_the_row_says_so(submit, prefix, more):
    result = submit(weights={prefix + key: value for key, value in WEIGHTS.items()} | more)
    assert result.returncode == 0, result.stderr
    told = f"Net: the checkpoint's keys begin with {prefix!r}, which was taken off"
    assert told + (", and 1 other keys left out" if more else "\n") in result.stdout


def test_submission_is_checked_with_its_keys_as_they_are(submit, command, tmp_path):
    paths = write_model(tmp_path, weights={f"module.{key}": value for key, value in WEIGHTS.items()})
    result = command("-m", "utils.submission", "check", *model_words(paths), cwd=tmp_path)
    assert result.returncode == 1
    assert "FAIL  checkpoint loads strictly: " in result.stdout
    assert "save it again without the 'module.' that its keys begin with" in result.stdout


def test_average_is_taken_where_a_checkpoint_has_both_and_the_row_says_so(submit):
    other = {key: value + 1 for key, value in WEIGHTS.items()}
    result = submit(weights={"params": other, "params_ema": WEIGHTS, "iter": 3})
    assert result.returncode == 0, result.stderr
    assert "Net: weights under params_ema; the checkpoint has params, too" in result.stdout


def test_numbers_of_numpy_beside_the_weights_are_no_code(submit):
    more = {"epoch": np.float64(3.5), "step": np.int64(7), "best": np.float32(1), "losses": np.ones(3)}
    assert submit(weights={**more, "state_dict": WEIGHTS}).returncode == 0


def test_safetensors_are_loaded(submit, tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "w.safetensors")
    result = submit("--checkpoint", tmp_path / "w.safetensors")
    assert result.returncode == 0, result.stderr
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:90])
    result = submit("--checkpoint", tmp_path / "w.safetensors")
    assert "w.safetensors: not a readable checkpoint" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("key", ["model_state_dict", "net_g", "ema", "generator"])
def test_weights_under_another_key_are_found_as_the_error_says(submit, tmp_path, key):
    weights = {"epoch": 3, key: WEIGHTS}
    last = submit(weights=weights).stderr.splitlines()[-1]
    assert f'holds no state dict of tensors, but epoch, {key}; write state_key = "{key}" into its TOML file' in last
    write_table(tmp_path / "team42_Net.py", state_key=key)
    assert submit(weights=weights).returncode == 0


def test_wrong_class_lists_those_of_the_file(submit, tmp_path):
    write_table(tmp_path / "team42_Net.py", "Net")
    result = submit(name="Network")
    assert result.returncode == 2
    assert "team42_Net.py: has no class Net; it has Network (" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("statement", ["import parts", "import models.parts", "from parts.blocks import Block"])
def test_import_of_a_neighbour_is_told_as_that(submit, tmp_path, statement):
    (tmp_path / "upload" / "models").mkdir(parents=True)
    for name in ("parts.py", "models/parts.py"):
        (tmp_path / "upload" / name).touch()
    result = submit(constructor=statement, file="upload/team42_Net.py")
    assert result.returncode == 2
    assert "it lies beside" in result.stderr or "which lies beside it" in result.stderr or "hidden" in result.stderr


LAZY = "self.conv = nn.LazyConv2d(48, 3, padding=1)"
TRACED = "self.up = torch.jit.trace(self.up, torch.ones(1, 48, 2, 2))"
BUFFERS = (
    "weight = self.conv.weight.detach(); del self.conv; self.conv = nn.Module()\n"
    "        self.conv.register_buffer('weight', weight); self.conv.register_buffer('bias', torch.zeros(48))"
)


def test_lazy_module_is_named_with_a_remedy(submit):
    result = submit(constructor=LAZY)
    assert result.returncode == 2
    assert "conv.weight has no shape before the first pass; replace the lazy module" in result.stderr.splitlines()[-1]


def test_traced_part_and_network_of_buffers_give_a_row_or_a_line(submit):
    for changes in (
        {"constructor": TRACED},
        {"constructor": BUFFERS, "forward": "return self.up(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))"},
    ):
        result = submit(**changes)
        assert "Traceback" not in result.stderr
        assert result.returncode == 0 or "team42_Net.py: " in result.stderr.splitlines()[-1]


def test_relative_import_is_told_what_to_do(submit):
    result = submit(constructor="from .parts import Part")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].count("put what it imports into it") == 1


def test_cuda_in_the_constructor_costs_one_line_without_a_gpu(submit):
    result = submit(constructor="self.conv.cuda()")
    assert result.returncode == 2
    assert "cannot build Net" in result.stderr.splitlines()[-1]
    assert "there is no GPU here: leave .cuda() out" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"arguments": 3}, ", got int"),
        ({"state_key": "ema"}, "nothing under ema"),
        ({"class_": "Net"}, "unknown key class_"),
        ({"data_range": -1}, "data_range: expected float > 0.0"),
    ],
)
def test_bad_values_of_the_toml_file_are_named(submit, tmp_path, values, part):
    write_table(tmp_path / "team42_Net.py", **values)
    result = submit()
    assert result.returncode == 2
    assert part in result.stderr.splitlines()[-1]


CLASSES = {
    "the only one": ("class A(nn.Module): pass", "A"),
    "the one that no other uses": ("class A(nn.Module): pass\nclass B(nn.Module): part = A", "B"),
    "the one that the file is called after": ("class X(nn.Module): pass\nclass Net(nn.Module): pass", "Net"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_network_is_found_among_the_classes(tmp_path, kind):
    source, expected = CLASSES[kind]
    (tmp_path / "team42_Net.py").write_text(source)
    assert network_class(tmp_path / "team42_Net.py") == expected


def test_network_that_could_be_any_class_is_asked_for(tmp_path):
    (tmp_path / "team42_Net.py").write_text("class A(nn.Module): pass\nclass B(nn.Module): pass")
    with pytest.raises(
        HarnessError, match=r"which class is the network\? It has A, B; write team42_Net\.toml beside it"
    ):
        network_class(tmp_path / "team42_Net.py")


def test_row_of_a_trusted_model_says_what_the_counter_leaves_out(tmp_path, pairs, command, monkeypatch):
    """fvcore passes over convolutions of padding='same'; torch's dispatcher does not. Here all of them are such."""
    file, weights = write_model(tmp_path, constructor="self.conv = nn.Conv2d(3, 48, 3, padding='same')")
    entry = replace(entry_from_file(file, "Net", [], weights), origin=Origin.REGISTRY, id=4242)
    monkeypatch.setattr("utils.measuring.read_registry", lambda: [entry])
    result = command("eval.py", *QUICK, "--data_dir", pairs, "--model_id", 4242, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    computed = stored(tmp_path / "results")["Net"]["complexity"]["computed"]
    assert computed["macs"] == computed["traced_macs"] == 3 * 48 * 9 * 256**2
    assert "as computed, by torch's dispatcher: FLOPs 0.08 G (counted: 0.00)" in result.stdout
