"""Pack the submission archive, and prove that it runs without this project."""

import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from utils.data.datasets import open_dataset
from utils.data.sample import ensure_sample
from utils.errors import HarnessError
from utils.evaluate.evaluation import restore
from utils.files import ROOT, json_text, replacing
from utils.isolation.host import IsolatedRunner
from utils.isolation.sandbox import run_apart
from utils.record import Record
from utils.results.tables import latex, latex_table, markdown_table
from utils.zoo.checkpoints import find_state_dict
from utils.zoo.registry import ModelEntry, source_files, split_arguments

SELECT_MODEL = '''\
"""The branch to paste into select_model of the organizers' test_demo.py, in a function that runs as it stands."""

import os

import torch


def select_model(args, device):
    model_id = args.model_id
    if model_id == {id}:
{branch}
    else:
        raise NotImplementedError(f"model {{model_id}} is not in this archive")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.to(device), name, data_range, None
'''
BRANCH = """\
from models.{module} import {class_name}
name, data_range = f"{{model_id:02}}_{name}", {data_range}
model_path = os.path.join("model_zoo", "{checkpoint}")
model = {class_name}({arguments})
state = torch.load(model_path, map_location="cpu", weights_only=True)
model.load_state_dict(state{key}, strict=True)
"""
# Runs in the unpacked archive with nothing else on the path: LR images in, SR images and the parameter count out.
PROOF = """\
import argparse, numpy, torch
from select_model import select_model
model, name, data_range, tile = select_model(argparse.Namespace(model_id={id}), torch.device("cpu"))
torch.set_num_threads({threads})
results = {{"params": sum(p.numel() for p in model.parameters())}}
for key, lr in numpy.load("proof_lr.npz").items():
    with torch.no_grad():
        sr = model(torch.from_numpy(lr.transpose(2, 0, 1)).unsqueeze(0).float() / 255 * data_range)
    sr = (sr.squeeze(0).float().clamp(0, data_range) * 255 / data_range).round()
    results[key] = sr.to(torch.uint8).permute(1, 2, 0).numpy()
numpy.savez("proof_sr.npz", **results)
"""


def pack(entry: ModelEntry, record: Record, path: Path, sandbox: str = "auto") -> list[str]:
    """Write the archive of an entry with its results record, prove it, and return the names that it holds.

    Raise HarnessError if the archive does not run on its own or gives other images than this project; then no archive
    is left under `path`.
    """
    files = {
        **{place_of(path): path.read_bytes() for path in source_files(entry)},
        f"model_zoo/{entry.checkpoint_path.name}": entry.checkpoint_path.read_bytes(),
        "select_model.py": select_model_source(entry).encode(),
        "record.json": json_text(msgspec.to_builtins(without_folders(record))).encode(),
        "factsheet.tex": (latex_table([record]) + "\n" + complexity_paragraph(record)).encode(),
        "factsheet.md": markdown_table([record]).encode(),
    }
    with replacing(path, "choose another --out_file") as partial:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        prove(entry, partial, sandbox)
    return list(files)


def without_folders(record: Record) -> Record:
    """Return a record that names files and data without the machine's folders."""
    model, dataset = record.model, record.dataset
    return msgspec.structs.replace(
        record,
        model=msgspec.structs.replace(model, file=Path(model.file).name, checkpoint=Path(model.checkpoint).name),
        dataset=msgspec.structs.replace(dataset, folder=Path(dataset.folder).name),
    )


def select_model_source(entry: ModelEntry) -> str:
    """Return the text of select_model.py: the organizers' function with this model's branch."""
    return SELECT_MODEL.format(id=entry.id, branch=textwrap.indent("\n".join(branch_body(entry)), 8 * " "))


def branch_body(entry: ModelEntry) -> list[str]:
    """Return the lines of a model's branch in `select_model`, not indented; they use `os` and `torch`."""
    positional, named = split_arguments(entry.arguments)
    arguments = ", ".join([*map(repr, positional), *(f"{key}={value!r}" for key, value in named.items())])
    key = find_state_dict(entry.checkpoint_path, entry.state_key).key
    return BRANCH.format(
        module=".".join(Path(place_of(ROOT / entry.file)).with_suffix("").parts[1:]),
        class_name=entry.class_name,
        name=entry.name,
        data_range=entry.data_range,
        arguments=arguments,
        checkpoint=entry.checkpoint_path.name,
        key=f"[{key!r}]" if key else "",
    ).splitlines()


def place_of(source: Path) -> str:
    """Return a source's place in the archive: as in this project if in models/ or kernels/, else in models/."""
    inside = any(source.is_relative_to(ROOT / folder) for folder in ("models", "kernels"))
    return str(source.relative_to(ROOT)) if inside else f"models/{source.name}"


def prove(entry: ModelEntry, archive: Path, sandbox: str = "auto") -> None:
    """Unpack an archive into an empty folder, run it there in a separate process, and compare with this project.

    Every image of the sample must come out equal to the last bit. Raise HarnessError otherwise.
    """
    images = {pair.name: pair.read_lr() for pair in open_dataset(ensure_sample()).pairs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / "archive")
        np.savez(folder / "archive" / "proof_lr.npz", allow_pickle=False, **images)
        code = PROOF.format(id=entry.id, threads=torch.get_num_threads())
        reason = run_apart([sys.executable, "-c", code], folder / "archive", folder / "log", sandbox)
        if reason:
            raise HarnessError(f"{entry.file}: the archive does not run on its own ({reason})")
        with np.load(folder / "archive" / "proof_sr.npz") as restored:
            _compare(entry, images, restored, folder / "reference.log", sandbox)


def _compare(
    entry: ModelEntry, images: dict[str, np.ndarray], restored: Mapping[str, Any], log: Path, sandbox: str
) -> None:
    with IsolatedRunner(entry, torch.device("cpu"), log, sandbox=sandbox) as reference:
        if restored["params"] != reference.count().params:
            raise HarnessError(f"{entry.file}: the archive's network has {restored['params']} parameters")
        for name, lr in images.items():
            if not np.array_equal(restored[name], restore(reference, lr).sr):
                raise HarnessError(f"{entry.file}: the archive restores {name} otherwise than this project")


def complexity_paragraph(record: Record) -> str:
    """Return the factsheet's paragraph on the method's complexity, in LaTeX, from a complete results record."""
    counts, environment, runtime = record.counts, record.environment, record.runtime
    machine = environment.gpu or f"{environment.cpu}, {environment.threads} threads"
    height, width = counts.input_shape[2:]
    steady = runtime.trusted_steady  # None if every image was restored in tiles
    after_warmup = (
        f", and {steady.median_ms:.2f} ms after a warm-up on {steady.lr_width} $\\times$ {steady.lr_height}"
        if steady
        else ""
    )
    runs = f"{len(runtime.runs)} run{'s' * (len(runtime.runs) != 1)}"
    return (
        f"\\paragraph{{Method complexity.}} {latex(record.model.name)} has {counts.params / 1e6:.3f} M "
        f"parameters. On an input of {width} $\\times$ {height} it takes {counts.flops / 1e9:.2f} G FLOPs "
        f"(multiply-accumulates) in {counts.convs} convolutions "
        f"with {counts.activations / 1e6:.2f} M activations. "
        f"On {latex(machine)} the forward pass takes {record.runtime_ms:.2f} ms on average over the "
        f"{record.dataset.images} images of {latex(record.dataset.label)}, "
        f"{runs}{after_warmup}; the peak memory is {record.memory.peak_mib:.2f} MiB.\n"
    )
