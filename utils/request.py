"""What a command line asks for, as declared types, and the registry entries that it means.

The command-line files make a request; what is below them knows no arguments.
"""

import ast
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.errors import HarnessError
from utils.evaluate.measurement import MeasurementPlan
from utils.isolation.process import Limits
from utils.isolation.repository import repository_entries
from utils.zoo.registry import (
    ModelEntry,
    ModelTable,
    Origin,
    entry_from_file,
    find_entry,
    find_variant,
    read_model_table,
    read_registry,
    with_checkpoint,
)


@dataclass(frozen=True)
class ModelChoice:
    """Which models: `ids` of the registry (all if there are none), a model `file`, or an organizers' `repository`.

    `checkpoint` replaces the weights of the one model named; `register` is the id under which a file's model is written
    to the registry; `backend` and `precision` choose a variant, None the plain form.
    """

    ids: tuple[int, ...] = ()
    file: Path | None = None
    checkpoint: Path | None = None
    repository: Path | None = None
    register: int | None = None
    trust_checkpoint: bool = False
    backend: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class DataChoice:
    """Which images: a data folder, or an HR and an LR folder; the sample if there is none of them."""

    data_dir: Path | None = None
    hr: Path | None = None
    lr: Path | None = None
    split: str = "valid"


@dataclass(frozen=True)
class IsolationChoice:
    """The sandbox and the limits of untrusted code; `always`: isolate trusted code, too."""

    always: bool = False
    sandbox: str = "auto"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Request:
    """The request of an `eval.py` command. `edition` is the year of the score; `show`: measure nothing.

    `jobs` models are measured at once, on a GPU each.
    """

    models: ModelChoice
    data: DataChoice
    plan: MeasurementPlan
    isolation: IsolationChoice
    results: Path
    device: str = "auto"
    fresh: bool = False
    save_images: bool = False
    report: Path | None = None
    edition: int | None = None
    show: bool = False
    jobs: int = 1


def submitted_entry(file: Path, checkpoint: Path | None = None) -> ModelEntry:
    """Return the entry of a model file; naming it is the consent to run it.

    `file` is a TOML file with the keys of ModelTable, or a Python file: with such a file of the same stem beside it, or
    with one network, no arguments, and a checkpoint of the same stem. `checkpoint` replaces the table's. Raises
    HarnessError if something is missing.
    """
    table = _table_of(file)
    if checkpoint is None and not table.checkpoint:
        raise HarnessError(f"--model_file {file}: has no checkpoint; name it by --checkpoint, or in its TOML file")
    weights = checkpoint or table.checkpoint
    options = table.data_range, table.state_key, table.lenient
    return entry_from_file(table.file, table.class_name, table.arguments, weights, *options)


def _table_of(file: Path) -> ModelTable:
    if file.suffix == ".toml":
        return read_model_table(file)
    beside = file.with_suffix(".toml")
    if not file.is_file():
        raise HarnessError(f"{file}: no such file; check --model_file")
    if beside.is_file():
        return read_model_table(beside)
    weights = next(filter(Path.is_file, map(file.with_suffix, (".pth", ".pt", ".ckpt", ".safetensors"))), None)
    return ModelTable(file=str(file), class_name=network_class(file), checkpoint=str(weights or ""))


def network_class(file: Path) -> str:
    """Return the name of the class of a Python file that is the network, without running it.

    It is the only class that no other class of the file uses, or the one that the file is named after. Raises
    HarnessError if that does not tell.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise HarnessError(f"{file}: cannot be read as Python ({error})") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases}
    used = {
        inner.id
        for name, node in classes.items()
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and inner.id != name
    }
    named = [name for name in classes if name == file.stem.partition("_")[2] or name == file.stem]
    unused = [name for name in classes if name not in used]
    candidates = named or unused
    if len(candidates) != 1:
        found = ", ".join(classes) or "no class"
        raise HarnessError(
            f"{file}: which class is the network? It has {found}; write {file.with_suffix('.toml').name} beside it "
            f'with file = "{file.name}" and class = "…"'
        )
    return candidates[0]


def one_entry(models: ModelChoice) -> ModelEntry:
    """Return the one entry that an id or a file names. Raise HarnessError unless it is one of them."""
    if (len(models.ids) == 1) == (models.file is not None):
        raise HarnessError("name one model, by --model_id or by --model_file")
    if models.file:
        return submitted_entry(models.file, models.checkpoint)
    return with_checkpoint(find_entry(models.ids[0], read_registry()), models.checkpoint)


def check_models(models: ModelChoice) -> None:
    """Raise HarnessError if two parts of a choice contradict each other: one of them would be ignored."""
    if models.file and models.ids:
        raise HarnessError("--model_id: names a model of the registry; leave it out with --model_file")
    if models.register is not None and not models.file:
        raise HarnessError("--register: needs --model_file, the model to write into the registry")
    if models.repository and (models.file or models.checkpoint):
        raise HarnessError("--repository: brings its own files and weights; leave out --model_file and --checkpoint")
    if models.checkpoint and not models.file and len(models.ids) != 1:
        raise HarnessError("--checkpoint: needs exactly one --model_id, the model that it belongs to")
    if (models.backend or models.precision) and (models.file or models.repository):
        raise HarnessError(
            "--backend, --precision: choose among the registry's variants of a model; leave them out with --model_file "
            "and --repository"
        )


def named_entries(models: ModelChoice, registry: list[ModelEntry]) -> list[ModelEntry]:
    """Return the entries that a choice names, in order, in their plain form."""
    if models.file:
        entry = submitted_entry(models.file, models.checkpoint)
        entries = [entry if models.register is None else replace(entry, id=models.register)]
    elif models.repository:
        entries = _repository_models(models.repository, models)
    elif models.ids:
        entries = [find_entry(model_id, registry) for model_id in models.ids]
    else:
        entries = [entry for entry in registry if not entry.variant]
    return [replace(entry, trust_checkpoint=True) for entry in entries] if models.trust_checkpoint else entries


def with_variants(
    entries: list[ModelEntry], models: ModelChoice, registry: list[ModelEntry], fastest: dict[str, ModelEntry]
) -> list[ModelEntry]:
    """Return the variants that a choice asks for, then the plain forms that are not among them.

    `fastest` has the variant that `--backend auto` takes, by the key of each entry.
    """
    if models.backend or models.precision:
        chosen = [
            fastest[entry.key]
            if models.backend == "auto"
            else find_variant(entry, registry, models.backend, models.precision)
            for entry in entries
        ]
        entries = [*chosen, *(entry for entry in entries if entry not in chosen)]
    if models.checkpoint and models.ids:  # it belongs to the one model that is named, in each of its variants
        entries = [with_checkpoint(entry, models.checkpoint) for entry in entries]
    return entries


def is_registered(entry: ModelEntry, model_id: int) -> bool:
    """Return whether an entry is the registry's of this id."""
    return entry.origin == Origin.REGISTRY and entry.id == model_id


def _repository_models(folder: Path, models: ModelChoice) -> list[ModelEntry]:
    entries = repository_entries(folder, models.trust_checkpoint)
    if not models.ids:
        return entries
    if unknown := set(models.ids) - {entry.id for entry in entries}:
        known = ", ".join(str(entry.id) for entry in entries)
        raise HarnessError(f"--model_id {min(unknown)}: not in {folder}/test_demo.py, which knows {known}")
    return [entry for entry in entries if entry.id in models.ids]
