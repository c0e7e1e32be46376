"""Build a recipe's model for training, and name the files that its weights are exported to.

Any network in the registry can be trained directly. A model may also have a training form, a class with

    fuse()           returns a new plain network with the same output
    set_form(form)   optional: "branches" runs the training form as written, "collapsed" computes the same at lower cost
    map_plain(f)     optional: in the collapsed form, f(plain network) runs instead of the plain network

In the registry, the plain network's entry gives the id of the training form's entry as `training`. A class that has
`fuse()` but no separate entry is its own training form.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.training.reparam import FORMS as TRAINING_FORMS
from utils.errors import HarnessError
from utils.files import ROOT
from utils.zoo.checkpoints import StateDict, differences, load_state_dict, load_strictly, without_prefix
from utils.zoo.registry import ModelEntry, ModelTable, Origin, build_model, find_entry, read_registry

FORMS = ("plain", *TRAINING_FORMS)


@dataclass(frozen=True)
class TrainedModel:
    """The registry entry of the network to train, and the names of the files that its weights are exported to.

    `train_file` is for the training form's weights, None if there is no training form; `plain_file` is for the plain
    network's weights.
    """

    entry: ModelEntry
    train_file: str | None
    plain_file: str


def trained_model(model: int | ModelTable) -> TrainedModel:
    """Return the TrainedModel of a recipe's `model`. Raise HarnessError if there is no such model."""
    if isinstance(model, ModelTable):
        return _by_itself(_entry_of_table(model))
    registry = read_registry()
    found = find_entry(model, registry)
    plain = next((other for other in registry if other.training == model), found)  # a training form gives its plain one
    if plain.training is None:
        return _by_itself(plain)
    entry = find_entry(plain.training, registry)
    return TrainedModel(entry, Path(entry.checkpoint).name, Path(plain.checkpoint).name)


def _by_itself(entry: ModelEntry) -> TrainedModel:
    """Return an entry that no other belongs to; if its class has `fuse()`, it is its own training form."""
    stem = Path(entry.file).stem
    if fused_by_itself(build_model(entry)):
        return TrainedModel(entry, f"{stem}_train.pth", f"{stem}.pth")
    return TrainedModel(entry, None, Path(entry.checkpoint).name or f"{stem}.pth")


def build(trained: TrainedModel, form: str | None = None) -> nn.Module:
    """Return the network to train, with initial weights, running in `form`.

    With "auto", that is the usual form; without `form`, a training form runs its branches. Raise HarnessError if the
    network has no such form.
    """
    network = build_model(trained.entry)
    forms = forms_of(network)
    form = forms[0] if form == "auto" else form or forms[-1]
    if form not in forms:
        name = trained.entry.name
        raise HarnessError(f'form = "{form}": {name} has no such form; write form = "{forms[0]}", or leave it out')
    if form != "plain":
        network.set_form(form)  # type: ignore[operator]
    return network


def forms_of(network: nn.Module) -> tuple[str, ...]:
    """Return the forms in which a network can be trained, the usual one first."""
    return FORMS[1:] if callable(getattr(network, "set_form", None)) else FORMS[:1]


def load_weights(network: nn.Module, path: Path) -> StateDict:
    """Load a checkpoint into a network to train; return the state dict.

    Raise HarnessError if it does not fit or holds NaN or infinite values; for fused weights, the error says so.
    """
    state, _ = without_prefix(load_state_dict(path), network.state_dict())
    if differences(network.state_dict(), state) and not differences(fused(network).state_dict(), state):
        raise HarnessError(
            f"{path}: these are fused weights, which do not fit {type(network).__name__}; "
            "give the weights of the training form"
        )
    load_strictly(network, state, path)
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise HarnessError(f"{path}: {broken[0]} holds NaN or infinite values; give other weights")
    return state


def fused(network: nn.Module) -> nn.Module:
    """Return the plain network of a training form; return any other network unchanged."""
    if not fused_by_itself(network):
        return network
    training = network.training
    plain: nn.Module = network.eval().fuse()  # type: ignore[operator]  # fusing a BatchNorm may require eval mode
    network.train(training)
    return plain


def fused_by_itself(network: nn.Module) -> bool:
    """Return whether a network is a training form. A layer that happens to be called `fuse` does not make it one."""
    return callable(getattr(network, "fuse", None)) and not isinstance(network.fuse, nn.Module)


def _entry_of_table(table: ModelTable) -> ModelEntry:
    """Return the entry of a model that a recipe describes as the registry does: file, class, arguments, data_range."""
    if not (ROOT / table.file).is_file():
        raise HarnessError(f"model.file = {table.file!r}: no such file; paths count from the project's folder")
    if table.checkpoint or table.state_key or table.lenient:
        raise HarnessError("model: checkpoint, state_key and lenient are for measuring; give initial weights by --init")
    return ModelEntry(
        id=0,
        name=table.class_name,
        file=table.file,
        class_name=table.class_name,
        arguments=table.arguments,
        checkpoint="",
        data_range=table.data_range,
        provenance="a recipe's",
        origin=Origin.FILE,
    )
