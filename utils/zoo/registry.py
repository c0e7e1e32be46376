"""The models: `model_zoo/models.toml` lists them, `load_model` turns an entry into a network ready to run."""

import ast
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import tomli_w
import torch
from msgspec import Meta, Struct, field
from torch import nn
from torch.nn.parameter import UninitializedParameter

from utils.errors import HarnessError, in_one_line
from utils.files import ROOT, file_sha256, read_toml, write_text
from utils.record import WeightsInfo
from utils.typed import converted
from utils.zoo.checkpoints import STATE_KEY, TRUST, find_state_dict, load_leniently, load_strictly, without_prefix

REGISTRY = ROOT / "model_zoo" / "models.toml"
KERNELS = ROOT / "kernels"
TEAM_FILE = re.compile(r"team(?P<id>\d+)_(?P<name>\w+)\.py")
HEADER = re.compile(r'^#include "([\w.]+)"', re.MULTILINE)
COMPILED = (".c", ".cpp", ".cu")
INHERITED = ("checkpoint", "sha256", "data_range", "provenance", "licence")  # by a variant, from its plain form


class Origin(StrEnum):
    """The origin of an entry. Only the registry's code is trusted and may run in this process."""

    REGISTRY = "registry"
    FILE = "file"  # --model_file, or a recipe's file
    REPOSITORY = "repository"  # --repository, an organizers' checkout


Arguments = list[Any] | dict[str, Any]  # positional ones, or named ones with positional ones as a list under "*"


class ModelTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table that says how a network is built and loaded: in the registry, in a recipe, beside a model's file.

    `file` is the Python file. `data_range` is that of the network's input and output, 1.0 or 255.0. `state_key` is the
    weights' key in the checkpoint, if it is not one of those tried by default. `lenient` loads with strict=False.
    """

    file: str
    class_name: str = field(name="class")
    arguments: Arguments = field(default_factory=list)
    checkpoint: str = ""
    data_range: Annotated[float, Meta(gt=0)] = 1.0
    state_key: str = ""
    lenient: bool = False


@dataclass(frozen=True)
class Variant:
    """The model `of` whose function an entry computes in another way, and the options that choose it."""

    of: int
    backend: str
    precision: str


class RegistryTable(ModelTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A [[model]] table of the registry; its head explains the keys."""

    id: int
    name: str
    sha256: str
    provenance: str
    licence: str
    published: dict[str, Any] = field(default_factory=dict)
    variant: Variant | None = None
    training: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model that can be built: a table of the registry, or a model described by other means; `origin` says which.

    The first fields are those of ModelTable and RegistryTable. `training` is the id of the entry that is trained and
    whose weights fuse into this one's. `trust_checkpoint` unpickles more than tensors; no file can request it.
    `given_checkpoint` is a file that the user named to replace `checkpoint`. With `exact`, which the checks of a
    submission use, no prefix is taken off a checkpoint's keys.
    """

    id: int
    name: str
    file: str
    class_name: str
    arguments: Arguments
    checkpoint: str
    origin: Origin
    sha256: str = ""
    data_range: float = 1.0
    provenance: str = ""
    licence: str = "unknown"
    published: dict[str, Any] = dataclass_field(default_factory=dict)
    state_key: str = ""
    lenient: bool = False
    trust_checkpoint: bool = False
    variant: Variant | None = None
    training: int | None = None
    given_checkpoint: str = ""
    exact: bool = False

    @property
    def backend(self) -> str:
        """Return the backend, as --backend names it."""
        return self.variant.backend if self.variant else "plain"

    @property
    def precision(self) -> str:
        """Return the number type of the arithmetic, as --precision names it."""
        return self.variant.precision if self.variant else "float32"

    @property
    def full_name(self) -> str:
        """Return the organizers' name of the model, such as 07_NanoSR. Two models may have the same one."""
        return f"{self.id:02}_{self.name}"

    @property
    def checkpoint_path(self) -> Path:
        """Return the checkpoint's path. A relative path starts from the project folder."""
        return ROOT / (self.given_checkpoint or self.checkpoint)

    @property
    def key(self) -> str:
        """Return the model's key in a results file: its origin, and what distinguishes it from others of that origin.

        Names are not part of it. An edited file keeps its key; the sha256 values in the record tell versions apart.
        """
        if self.origin == Origin.REGISTRY:
            words = [str(self.id), self.given_checkpoint]
        elif self.origin == Origin.REPOSITORY:
            words = [str(Path(self.file).parent), str(self.id)]
        else:
            options = [self.state_key, "" if self.data_range == 1.0 else f"range {self.data_range:g}"]
            options += ["lenient" * self.lenient, json.dumps(self.arguments) if self.arguments else ""]
            words = [self.file, self.class_name, *options, self.checkpoint]
        return " ".join([self.origin, *filter(None, words)])

    @property
    def slug(self) -> str:
        """Return a unique name for this model's files, such as its log."""
        if self.key == f"{Origin.REGISTRY} {self.id}":
            return self.full_name
        shown = Path(self.file).parent.name if self.origin == Origin.REPOSITORY else self.name
        return f"{self.id:02}_{shown}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode on its device. Without weights, `weights.missing_weights` says why."""

    model: nn.Module
    entry: ModelEntry
    weights: WeightsInfo


def read_registry(path: Path = REGISTRY) -> list[ModelEntry]:
    """Return the entries in the file's order. Raise HarnessError for bad TOML, a missing key, or an id used twice."""
    tables = read_toml(path, "it is the registry of models").get("model", [])
    entries: list[ModelEntry] = []
    for number, table in enumerate(tables, start=1):
        where = f"{path}: model {table.get('name', number)}"
        of = table.get("variant", {}).get("of")
        if "variant" in table and of not in [other.get("id") for other in tables]:
            raise HarnessError(f"{where}: variant of {of}, which is not a model's id; correct `of`")
        plain: dict[str, Any] = next((other for other in tables if of is not None and other.get("id") == of), {})
        table = {key: plain[key] for key in INHERITED if key in plain} | table
        values = msgspec.structs.asdict(converted(table, RegistryTable, where))
        entry = ModelEntry(**values, origin=Origin.REGISTRY)
        if entry.id in {other.id for other in entries}:
            raise HarnessError(f"{where}: id {entry.id} is taken; choose another")
        entries.append(entry)
    return entries


def read_model_table(path: Path) -> ModelTable:
    """Return the ModelTable in a TOML file that describes a model. Its paths are relative to its folder.

    Raise HarnessError if it cannot be read, or a key is missing, unknown or of the wrong type.
    """
    hint = "a model file's keys are those of model_zoo/models.toml"
    table = converted(read_toml(path, hint), ModelTable, path, hint)
    checkpoint = str(path.parent / table.checkpoint) if table.checkpoint else ""
    return msgspec.structs.replace(table, file=str(path.parent / table.file), checkpoint=checkpoint)


def find_entry(model_id: int, entries: Iterable[ModelEntry]) -> ModelEntry:
    """Return the entry with this id. Raise HarnessError, listing the known ones, if there is none."""
    for entry in entries:
        if entry.id == model_id:
            return entry
    known = ", ".join(f"{entry.id} {entry.name}" for entry in entries)
    raise HarnessError(f"--model_id {model_id}: not in model_zoo/models.toml; it holds {known}")


def plain_entry(entry: ModelEntry) -> ModelEntry:
    """Return the registry's entry whose function a variant computes. Return any other entry unchanged."""
    return find_entry(entry.variant.of, read_registry()) if entry.variant else entry


def find_variant(
    entry: ModelEntry, entries: list[ModelEntry], backend: str | None = None, precision: str | None = None
) -> ModelEntry:
    """Return the entry that computes `entry`'s function with a backend and a precision; None matches any.

    The plain float32 form is `entry` itself. Raise HarnessError, listing the variants, if none fits.
    """
    variants = variants_of(entry, entries)
    for other in variants:
        if backend in (None, other.backend) and precision in (None, other.precision):
            return other
    known = ", ".join(f"{other.backend} {other.precision}" for other in variants)
    wanted = {"--backend": backend, "--precision": precision}
    asked = " ".join(f"{name} {value}" for name, value in wanted.items() if value)
    raise HarnessError(f"{asked}: {entry.name} has no such variant; it runs as {known}")


def variants_of(entry: ModelEntry, entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """Return an entry itself and its variants.

    Only an entry of the registry has variants. A file whose name happens to contain its id has none.
    """
    if entry.origin != Origin.REGISTRY:
        return [entry]
    return [entry, *(other for other in entries if other.variant and other.variant.of == entry.id)]


def load_model(entry: ModelEntry, device: torch.device | str) -> LoadedModel:
    """Build an entry's network and load its checkpoint, strictly.

    An absent checkpoint of the registry is not an error: the network can still be timed and counted, and
    `missing_weights` says what is missing. Raise HarnessError if the class cannot be built or the weights do not fit.
    """
    model = build_model(entry)
    path = entry.checkpoint_path
    info = WeightsInfo(sha256=None, provenance=entry.provenance)
    if entry.origin == Origin.REGISTRY and not entry.given_checkpoint and not path.is_file():
        info.missing_weights = f"{entry.checkpoint}: no checkpoint ({entry.provenance})"
    else:
        remedies = (TRUST,) if entry.origin == Origin.REGISTRY else (TRUST, STATE_KEY)
        weights = find_state_dict(path, entry.state_key, entry.trust_checkpoint, remedies)
        state = weights.state
        if weights.others:
            info.notes.append(f"weights under {weights.key}; the checkpoint has {', '.join(weights.others)}, too")
        if not entry.exact:
            state, note = without_prefix(state, model.state_dict())
            info.notes += [note] if note else []
        if entry.lenient:
            info.ignored = load_leniently(model, state, path)
        else:
            try:
                load_strictly(model, state, path)
            except HarnessError as error:
                if entry.training is None or entry.exact:
                    raise
                raise HarnessError(
                    f"{error}; if these are weights of the training form, fuse them by python -m training.fuse, or "
                    f"measure them by --model_id {entry.training}"
                ) from error
        info.sha256 = file_sha256(path)
        if info.sha256 != entry.sha256:
            info.provenance = "unknown: the sha256 differs from the registry's"
    model.requires_grad_(False)
    return LoadedModel(model.eval().to(device), entry, info)


def entry_from_file(
    file: Path | str,
    class_name: str,
    arguments: Arguments,
    checkpoint: Path | str,
    data_range: float = 1.0,
    state_key: str = "",
    lenient: bool = False,
) -> ModelEntry:
    """Return the entry of a model outside the registry: a Python file, which will be run, and its checkpoint.

    Id and name come from a file name such as team07_Name.py. Otherwise the id is 0 and the name is the class's. Raise
    HarnessError if the file or the checkpoint does not exist.
    """
    file, checkpoint = Path(file).resolve(), Path(checkpoint).resolve()
    for path in (file, checkpoint):
        if not path.is_file():
            raise HarnessError(f"{path}: no such file; check --model_file and --checkpoint")
    team = TEAM_FILE.fullmatch(file.name)
    return ModelEntry(
        id=int(team["id"]) if team else 0,
        name=team["name"] if team else class_name,
        file=str(file),
        class_name=class_name,
        arguments=arguments,
        checkpoint=str(checkpoint),
        sha256=file_sha256(checkpoint),
        data_range=data_range,
        provenance="given by --model_file",
        origin=Origin.FILE,
        state_key=state_key,
        lenient=lenient,
    )


def with_checkpoint(entry: ModelEntry, checkpoint: str | Path | None) -> ModelEntry:
    """Return the entry with the user's checkpoint in place of its own, or unchanged for None."""
    return replace(entry, given_checkpoint=str(Path(checkpoint).resolve())) if checkpoint else entry


def check_id_is_free(model_id: int, path: Path = REGISTRY) -> None:
    """Raise HarnessError if the registry has a model of this id."""
    taken = {other.id: other.name for other in read_registry(path)}
    if model_id in taken:
        raise HarnessError(f"--register {model_id}: {path.name} has this id for {taken[model_id]}; choose another")


def register(entry: ModelEntry, path: Path = REGISTRY) -> None:
    """Append an entry to the registry, leaving its files in place. Raise HarnessError if its id is taken."""
    check_id_is_free(entry.id, path)
    values = {key: getattr(entry, key) for key in RegistryTable.__struct_fields__}
    table = {key: value for key, value in msgspec.to_builtins(RegistryTable(**values)).items() if value is not None}
    for key in ("file", "checkpoint"):
        if Path(table[key]).is_relative_to(ROOT):
            table[key] = str(Path(table[key]).relative_to(ROOT))
    write_text(path, path.read_text(encoding="utf-8") + "\n" + tomli_w.dumps({"model": [table]}))


def build_model(entry: ModelEntry) -> nn.Module:
    """Return an entry's network with its initial weights. Raise a one-line HarnessError for any exception."""
    positional, named = split_arguments(entry.arguments)
    try:
        module = import_model(entry)
        if not hasattr(module, entry.class_name):
            raise HarnessError(f"{entry.file}: has no class {entry.class_name}; it has {_classes_of(module)}")
        network = getattr(module, entry.class_name)(*positional, **named)
    except HarnessError:
        raise
    except ModuleNotFoundError as error:
        raise HarnessError(f"{entry.file}: {_missing_module(entry, error.name or '')}") from error
    except Exception as error:  # untrusted code may raise anything
        reason = in_one_line(error, file=entry.file)
        alone = isinstance(error, ImportError) and "relative import" in str(error)
        fix = "; put what it imports into it, or name the checkout that it is from by --repository" if alone else ""
        if "CUDA enabled" in str(error) or "NVIDIA driver" in str(error):
            fix = "; there is no GPU here: leave .cuda() out, or use the device of the input"
        raise HarnessError(f"{entry.file}: cannot build {entry.class_name} ({reason}){fix}") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise HarnessError(f"{entry.file}: {entry.class_name} gives {kind}, which is not a torch.nn.Module")
    lazy = [name for name, parameter in network.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise HarnessError(
            f"{entry.file}: {lazy[0]} has no shape before the first pass; replace the lazy module, such as "
            "nn.LazyConv2d, by one whose channels are given"
        )
    return network


def _classes_of(module: ModuleType) -> str:
    """Return the names of the network classes that a module defines, for an error."""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    return ", ".join(names) or "no class that is a torch.nn.Module"


def _missing_module(entry: ModelEntry, name: str) -> str:
    """Return in words whether a module that a model file misses lies beside it, and what to do."""
    first = name.partition(".")[0]
    folder = (ROOT / entry.file).parent
    places = [folder / first, folder.parent / first]
    if any(place.is_dir() or place.with_suffix(".py").is_file() for place in places):
        return (
            f"imports {name}, which lies beside it; a model is one file: put what it imports into it, or name the "
            "checkout that it is from by --repository"
        )
    return f"imports {name}, which is not installed; install it or remove the import"


def split_arguments(arguments: Arguments) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the named arguments of an entry's class: a list, or a table with a list under "*"."""
    if isinstance(arguments, list):
        return arguments, {}
    return arguments.get("*", []), {key: value for key, value in arguments.items() if key != "*"}


def source_files(entry: ModelEntry) -> list[Path]:
    """Return the source files of an entry's network.

    These are its Python file, compiled sources of the same stem beside it, and headers that they include from there.
    The model files of this project that it imports add the same. If one of them imports from `kernels/`, all of that
    folder is added.
    """
    files, waiting = [], [ROOT / entry.file]
    for path in waiting:  # which grows meanwhile
        files += [path, *_compiled_companions(path)]
        modules = _own_modules(path)
        others = [ROOT / f"{name.replace('.', '/')}.py" for name in modules if name.startswith("models.")]
        waiting += [other for other in others if other.is_file() and other not in waiting]
        if any(name.startswith("kernels") for name in modules):
            files += sorted(other for other in KERNELS.iterdir() if other.suffix in (".py", ".c", ".h"))
    return list(dict.fromkeys(files))


def _compiled_companions(path: Path) -> list[Path]:
    """Return compiled sources of a Python file's stem beside it, and what they include from there."""
    files = list(filter(Path.is_file, map(path.with_suffix, COMPILED)))
    for file in files:  # which grows meanwhile
        headers = map(path.with_name, HEADER.findall(file.read_text(encoding="utf-8", errors="replace")))
        files += [header for header in headers if header.is_file() and header not in files]
    return files


def _own_modules(path: Path) -> list[str]:
    """Return the modules of this project's `models` and `kernels` that a file imports, if it is of this project."""
    if not path.is_relative_to(ROOT):
        return []
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # running the file reports it
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return sorted(name for name in modules if name.partition(".")[0] in ("models", "kernels"))


def sources_sha256(entry: ModelEntry) -> str:
    """Return the hex digest of an entry's file, or of all its `source_files` if there are several."""
    digests = [file_sha256(path) for path in source_files(entry) if path.is_file()]  # loading it reports a missing one
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def import_model(entry: ModelEntry) -> ModuleType:
    """Return the module of an entry's Python file, which is run once."""
    path = ROOT / entry.file
    if path.is_relative_to(ROOT / "models"):
        return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    name = f"submission_{path.stem}"
    module = sys.modules.get(name)
    if module is not None and module.__file__ == str(path):
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HarnessError(f"{path}: no Python file; name one that ends in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
