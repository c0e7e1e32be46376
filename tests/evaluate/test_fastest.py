"""utils/evaluate/fastest.py: the choice follows the clock, keeps the precision, and is made once per machine."""

import json
from dataclasses import replace

import pytest
import torch

from utils.errors import HarnessError
from utils.evaluate.fastest import fastest_form
from utils.zoo.registry import entry_from_file

NET = """
import time
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        if seconds is None:
            raise OSError("no compiler")
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, lr):
        if self.seconds < 0:
            raise RuntimeError("for another device")
        time.sleep(self.seconds)
        return F.interpolate(lr, scale_factor=4)
"""
LR = torch.rand(1, 3, 16, 24)


@pytest.fixture
def choose(tmp_path):
    """Chooses among a plain network that takes 20 ms and variants of it; gives the Choice."""
    (tmp_path / "team07_Net.py").write_text(NET)
    torch.save({"scale": torch.ones(1)}, tmp_path / "w.pth")
    plain = entry_from_file(tmp_path / "team07_Net.py", "Net", [0.02], tmp_path / "w.pth")
    ways = {"exact": (0.01, "float32"), "rough": (0.0, "bfloat16"), "absent": (None, "float32")}
    ways["elsewhere"] = (-1.0, "float32")
    ways["missing"] = ways["absent"]
    registry = [plain]
    for number, (name, (seconds, precision)) in enumerate(ways.items()):
        variant = {"of": plain.id, "backend": name, "precision": precision}
        registry.append(replace(plain, id=200 + number, name=name, arguments=[seconds], variant=variant))

    def run(precision=None):
        return fastest_form(plain, registry, precision, LR, torch.device("cpu"), tmp_path / "fastest.json")

    return run


def test_fastest_form_that_keeps_the_precision_is_taken(choose):
    choice = choose()
    assert choice.entry.name == "exact"
    assert choice.times_ms.keys() == {"Net", "exact"}
    assert "no compiler" in choice.lacking["absent"]
    assert "for another device" in choice.lacking["elsewhere"]
    assert choose("bfloat16").entry.name == "rough"


def test_choice_says_what_it_found(choose):
    text = str(choose())
    assert text.startswith("--backend auto takes exact; speed as a ratio to the plain form: Net 1.00, exact ")
    assert text.count("not here: ") == 2  # two of the three for the same reason
    assert "not here: absent, missing (" in text


def test_times_are_taken_once_per_machine_and_class_of_size(choose, tmp_path):
    choose()
    kept = json.loads((tmp_path / "fastest.json").read_text())
    (key,) = kept
    assert "about 512 LR pixels" in key or "about 256 LR pixels" in key
    kept[key]["times_ms"]["exact"] = 99.0
    (tmp_path / "fastest.json").write_text(json.dumps(kept))
    assert choose().entry.name == "Net"


def test_plain_form_that_cannot_be_built_is_an_error(choose, tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(HarnessError, match="other"):
        choose()


def test_unreadable_times_are_taken_anew(choose, tmp_path):
    (tmp_path / "fastest.json").write_text("{")
    assert choose().entry.name == "exact"
