"""A recipe's model: how it is built for training, and in which files its weights are exported.

Any network of the registry can be trained as it is. A model may offer a training form, a class with

    fuse()           a new plain network with the same output
    set_form(form)   optional: "branches" runs the training form as it is written, "collapsed" a cheaper way of it
    map_plain(f)     optional: collapsed, f(plain network) runs in the place of the plain network

The registry's entry of the plain network names it, as `training`, by the id of the training form's entry. A class that
has `fuse()` itself and no entry beside it is its own training form.
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
    """The entry of what is trained, and the names of the files that the weights are exported to.

    `train_file` holds the training form's, None for a network that is trained as it is; `plain_file` the plain one's.
    """

    entry: ModelEntry
    train_file: str | None
    plain_file: str


def trained_model(model: int | ModelTable) -> TrainedModel:
    """Return the TrainedModel of a recipe's `model`. Raise HarnessError if there is no such model."""
    if isinstance(model, ModelTable):
        entry = _entry_of_table(model)
        has_form = fused_by_itself(build_model(entry))
        stem = Path(entry.file).stem
        return TrainedModel(entry, f"{stem}_train.pth" if has_form else None, f"{stem}.pth")
    registry = read_registry()
    plain = find_entry(model, registry)
    if plain.training is None:
        return TrainedModel(plain, None, Path(plain.checkpoint).name)
    entry = find_entry(plain.training, registry)
    return TrainedModel(entry, Path(entry.checkpoint).name, Path(plain.checkpoint).name)


def build(trained: TrainedModel, form: str | None = None) -> nn.Module:
    """Return a network to train, with its initial weights, that runs in `form`; None: as it is written.

    Raise HarnessError if the network has no such form.
    """
    network = build_model(trained.entry)
    forms = forms_of(network)
    form = form or forms[-1]
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

    Raise HarnessError if it does not fit, and says so if it is a training form's fused weights.
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
    """Return the plain network of a training form, or a network that has none itself."""
    if not fused_by_itself(network):
        return network
    training = network.training
    plain: nn.Module = network.eval().fuse()  # type: ignore[operator]  # what folds a BatchNorm may insist on evaluation
    network.train(training)
    return plain


def fused_by_itself(network: nn.Module) -> bool:
    """Return whether a network is a training form; a layer may happen to be called `fuse`."""
    return callable(getattr(network, "fuse", None)) and not isinstance(network.fuse, nn.Module)


def _entry_of_table(table: ModelTable) -> ModelEntry:
    """Return the entry of a model that a recipe describes as the registry does: file, class, arguments, data_range."""
    if not (ROOT / table.file).is_file():
        raise HarnessError(f"model.file = {table.file!r}: no such file; paths count from the project's folder")
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
