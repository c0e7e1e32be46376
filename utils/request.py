"""A command line's request as declared types, and the registry entries that it selects.

The command-line files make a request. The modules that they call know nothing of arguments.
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
    """The chosen models: `ids` of the registry (all if empty), a model `file`, or an organizers' `repository`.

    `checkpoint` replaces the weights of the one model named. `register` is the id under which a file's model is written
    to the registry. `backend` and `precision` choose a variant; without either, the plain form is used.
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
    """The chosen images: a data folder, or an HR and an LR folder. Without any, `open_data` takes the default."""

    data_dir: Path | None = None
    hr: Path | None = None
    lr: Path | None = None
    split: str = "valid"


@dataclass(frozen=True)
class IsolationChoice:
    """The sandbox and the limits of untrusted code; With `always`, trusted code is isolated too."""

    always: bool = False
    sandbox: str = "auto"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Request:
    """The request of an `eval.py` command. `edition` is the year of the score. With `show`, nothing is measured.

    `jobs` is the number of models that are measured at once, each on its own GPU.
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
    """Return the entry of a model file. By naming the file, the user consents to running it.

    `file` is a TOML file with the keys of ModelTable, or a Python file. A TOML file of the same stem may lie beside the
    Python file. Otherwise, the Python file must have one network without arguments, and a checkpoint of the same stem.
    `checkpoint` replaces the checkpoint found there. Raise HarnessError if something is missing.
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
    """Return the name of the network's class in a Python file, without running the file.

    This is the class that the file is named after, or else the only class that no other class of the file uses. Raise
    HarnessError unless there is exactly one.
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
    """Return the entry that an id or a file names. Raise HarnessError unless exactly one of them is given."""
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
    """Return the requested variants, then the plain forms that are not among them.

    `fastest` maps the key of each entry to the variant that `--backend auto` takes.
    """
    if models.backend or models.precision:
        chosen = [
            fastest[entry.key]
            if models.backend == "auto"
            else find_variant(entry, registry, models.backend, models.precision)
            for entry in entries
        ]
        entries = [*chosen, *(entry for entry in entries if entry not in chosen)]
    if models.checkpoint and models.ids:  # it belongs to the one named model and to each of its variants
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
