"""utils/evaluate/fastest.py: the choice follows the clock, keeps the precision, and is made once per machine."""

import json
from dataclasses import replace

import pytest
import torch

from tests.helpers import write_model
from utils.errors import HarnessError
from utils.evaluate.fastest import fastest_variant
from utils.measure.runtime import Pass
from utils.zoo.registry import Origin, Variant, entry_from_file

LR = torch.rand(1, 3, 16, 24)
# Milliseconds that a network takes by the clock of the test; None: it cannot be built, less than 0: nor run.
CONSTRUCTOR = """self.milliseconds = milliseconds
        if milliseconds is None: raise OSError("no compiler")"""
FORWARD = 'if self.milliseconds < 0: raise RuntimeError("for another device")'


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Chooses among a plain network that takes 20 ms and variants of it; gives the Choice."""
    file, weights = write_model(
        tmp_path, "team07_Net.py", parameters=", milliseconds", constructor=CONSTRUCTOR, forward=FORWARD
    )
    plain = replace(entry_from_file(file, "Net", [20.0], weights), origin=Origin.REGISTRY)
    ways = {"exact": (10.0, "float32"), "rough": (1.0, "bfloat16"), "absent": (None, "float32")}
    ways["elsewhere"] = (-1.0, "float32")
    ways["missing"] = ways["absent"]
    registry = [plain]
    for number, (name, (milliseconds, precision)) in enumerate(ways.items()):
        variant = Variant(plain.id, name, precision)
        registry.append(replace(plain, id=200 + number, name=name, arguments=[milliseconds], variant=variant))
    monkeypatch.setattr("utils.evaluate.fastest.timed_forward", lambda model, lr: Pass(model(lr), model.milliseconds))

    def run(precision=None):
        return fastest_variant(plain, registry, precision, LR, torch.device("cpu"), tmp_path / "fastest.json")

    return run


def test_fastest_variant_that_keeps_the_precision_is_taken(choose):
    choice = choose()
    assert choice.entry.name == "exact"
    assert choice.times_ms == {"Net": 20.0, "exact": 10.0}
    assert "no compiler" in choice.lacking["absent"]
    assert "for another device" in choice.lacking["elsewhere"]
    assert choose("bfloat16").entry.name == "rough"


def test_choice_says_what_it_found(choose):
    text = str(choose())
    assert text.startswith("--backend auto takes exact; speed as a ratio to the plain form: Net 1.00, exact 2.00; ")
    assert text.count("not here: ") == 2  # two of the three for the same reason
    assert "not here: absent, missing (" in text


def test_times_are_taken_once_per_machine_and_class_of_size(choose, tmp_path):
    choose()
    kept = json.loads((tmp_path / "fastest.json").read_text())
    (key,) = kept
    assert "about 512 LR pixels" in key  # of 384
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
