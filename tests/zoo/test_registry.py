"""utils/zoo/registry.py: reading models.toml and building what it lists."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from utils.errors import HarnessError
from utils.files import ROOT
from utils.zoo.registry import (
    Origin,
    entry_from_file,
    find_entry,
    find_variant,
    load_model,
    read_registry,
    register,
    source_files,
    sources_sha256,
    with_checkpoint,
)

ENTRY = """
[[model]]
id = {id}
name = "Net"
file = "models/team00_EFDN.py"
class = "EFDN"
arguments = {{}}
checkpoint = "{checkpoint}"
sha256 = ""
data_range = 1.0
provenance = "none"
licence = "none"
"""


def registry(folder, *tables):
    path = folder / "models.toml"
    path.write_text("".join(tables))
    return path


def test_registry_lists_the_table_rows_in_their_order():
    assert [entry.name for entry in read_registry()][:3] == ["NanoSR_train", "NanoSR_inference", "EFDN"]
    assert find_entry(7, read_registry()).full_name == "07_NanoSR_inference"


# What a variant says where it cannot run.
LACKS = re.compile(r"needs Triton|needs a C compiler|(takes|needs) a processor|does not let a process")


def test_every_entry_builds_and_names_an_existing_file():
    for entry in read_registry():
        assert (ROOT / entry.file).is_file()
        try:
            loaded = load_model(entry, "cpu")
        except HarnessError as error:
            if not entry.variant or not LACKS.search(str(error)):
                raise
            continue
        assert not loaded.model.training
        assert loaded.weights.missing_weights or loaded.weights.sha256 == entry.sha256, entry.name


def test_unknown_id_lists_the_known_ones():
    with pytest.raises(HarnessError, match=r"--model_id 99.*7 NanoSR_inference"):
        find_entry(99, read_registry())


def test_missing_checkpoint_still_gives_a_network_and_says_why(tmp_path):
    (entry,) = read_registry(registry(tmp_path, ENTRY.format(id=1, checkpoint="nowhere.pth")))
    loaded = load_model(entry, "cpu")
    assert "nowhere.pth: no checkpoint" in loaded.weights.missing_weights
    assert loaded.weights.sha256 is None
    assert loaded.model(torch.rand(1, 3, 16, 16)).shape == (1, 3, 64, 64)


def test_checkpoint_given_by_hand_must_exist(tmp_path):
    (entry,) = read_registry(registry(tmp_path, ENTRY.format(id=1, checkpoint="nowhere.pth")))
    with pytest.raises(HarnessError, match=r"other\.pth: no such checkpoint"):
        load_model(with_checkpoint(entry, tmp_path / "other.pth"), "cpu")


def test_weights_that_the_registry_does_not_know_have_no_provenance(tmp_path):
    entry = find_entry(0, read_registry())
    torch.manual_seed(1)
    torch.save(load_model(entry, "cpu").model.state_dict(), tmp_path / "own.pth")
    assert "unknown" in load_model(with_checkpoint(entry, tmp_path / "own.pth"), "cpu").weights.provenance


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([ENTRY.format(id=1, checkpoint="x").replace('licence = "none"\n', "")], "missing key licence"),
        ([ENTRY.format(id=1, checkpoint="x") + "scale = 4\n"], "unknown key scale"),
        ([ENTRY.format(id=1, checkpoint="x"), ENTRY.format(id=1, checkpoint="y")], "id 1 is taken"),
        (["[[model]\n"], "not valid TOML"),
        (
            ["[[model]]\nid = 2\nname = 'V'\nvariant = { of = 99 }\n"],
            "model V: variant of 99, which is not a model's id",
        ),
    ],
)
def test_bad_registry_names_the_key(tmp_path, tables, reason):
    with pytest.raises(HarnessError, match=reason):
        read_registry(registry(tmp_path, *tables))


def test_class_that_gives_no_module_is_named(tmp_path):
    file, weights = tmp_path / "net.py", tmp_path / "w.pth"
    file.write_text("def net():\n    return 7\n")
    weights.touch()
    with pytest.raises(HarnessError, match=r"net\.py: net gives int, which is not a torch\.nn\.Module"):
        load_model(entry_from_file(file, "net", [], weights), "cpu")


def test_class_that_is_not_there_is_named(tmp_path):
    (entry,) = read_registry(registry(tmp_path, ENTRY.format(id=1, checkpoint="x").replace('"EFDN"', '"Nothing"')))
    with pytest.raises(HarnessError, match=r"has no class Nothing; it has .*EFDN"):
        load_model(entry, "cpu")


@pytest.mark.parametrize(
    ("backend", "precision", "name"),
    [
        (None, None, "NanoSR_inference"),
        ("plain", None, "NanoSR_inference"),
        (None, "float32", "NanoSR_inference"),
        ("fast", None, "NanoSR_fast"),
        (None, "bfloat16", "NanoSR_bf16"),
        ("fast", "float16", "NanoSR_fp16"),
        ("winograd", None, "NanoSR_winograd"),
        ("winograd", "float16", "NanoSR_winograd_fp16"),
        ("winograd", "bfloat16", "NanoSR_winograd_bf16"),
    ],
)
def test_backend_and_precision_choose_the_variant(backend, precision, name):
    registry = read_registry()
    assert find_variant(find_entry(7, registry), registry, backend, precision).name == name


def test_variant_has_the_weights_of_its_plain_form():
    plain, *variants = (find_entry(id_, read_registry()) for id_ in (7, 207, 212))
    assert all((v.checkpoint, v.sha256, v.licence) == (plain.checkpoint, plain.sha256, "MIT") for v in variants)
    assert not any(v.published for v in variants)


def test_variant_that_is_not_there_lists_what_is():
    registry = read_registry()
    with pytest.raises(HarnessError, match="--precision float16: EFDN has no such variant; it runs as plain float32"):
        find_variant(find_entry(0, registry), registry, None, "float16")


def test_registered_model_is_read_back_as_it_was(tmp_path):
    path = registry(tmp_path, ENTRY.format(id=1, checkpoint="x"))
    for name in ("team42_Net.py", "w.pth"):
        (tmp_path / name).write_text("")
    entry = entry_from_file(
        tmp_path / "team42_Net.py", "Net", {"widths": [1, 2]}, tmp_path / "w.pth", 255.0, "params", True
    )
    register(entry, path)
    assert read_registry(path)[1] == replace(entry, origin=Origin.REGISTRY)
    with pytest.raises(HarnessError, match=r"--register 42: .* has this id for Net; choose another"):
        register(entry, path)


def test_sources_are_the_file_its_compiled_companion_and_the_models_it_imports():
    names = [path.name for path in source_files(find_entry(210, read_registry()))]
    assert names == [
        "nanosr_winograd.py",
        *sorted(path.name for path in (ROOT / "kernels").iterdir() if path.suffix in (".py", ".c", ".h")),
        "team07_NanoSR.py",
    ]


def test_hash_follows_every_source(tmp_path):
    file, checkpoint = tmp_path / "team42_Net.py", tmp_path / "team42_Net.pth"
    file.write_text("def broken")
    checkpoint.write_bytes(b"weights are no source")
    entry = entry_from_file(file, "Net", [], checkpoint)
    alone = sources_sha256(entry)
    assert alone == hashlib.sha256(b"def broken").hexdigest()
    file.with_suffix(".c").write_text("int x;")
    with_c = sources_sha256(entry)
    file.with_suffix(".c").write_text("int y;")
    assert len({alone, with_c, sources_sha256(entry)}) == 3


def test_file_that_is_gone_has_no_hash_and_no_traceback(tmp_path):
    entry = replace(find_entry(7, read_registry()), file=str(tmp_path / "gone.py"))
    assert sources_sha256(entry) == hashlib.sha256(b"").hexdigest()
