"""Helpers of several test files: images, data folders, toy networks, a results record, recipes, and commands."""

import csv
import errno
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import tomli_w
import torch
from torch import nn

from utils.data.images import bicubic_downscale, read_rgb, write_png
from utils.files import ROOT
from utils.isolation.sandbox import why_not
from utils.record import Record

CPU = torch.device("cpu")
# Options for the smallest measurement.
QUICK = ("--device", "cpu", "--runs", 1, "--warmup", 0, "--repeats", 1)
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random H x W x 3 uint8 image, which is like a photograph to networks and metrics."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3))
    fine = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return np.clip(fine + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def write_pairs(
    folder: Path, names: Sequence[str], size: tuple[int, int] = (64, 96), layout: tuple[str, str] = ("HR", "LR")
) -> Path:
    """Write HR and bicubic LR images of `size` (H, W) into `folder`; return the folder."""
    for seed, name in enumerate(names):
        hr = photograph(size[0], size[1], seed)
        write_png(Path(folder) / layout[0] / f"{name}.png", hr)
        write_png(Path(folder) / layout[1] / f"{name}x4.png", bicubic_downscale(hr))
    return Path(folder)


def write_photographs(folder: Path) -> Path:
    """Write three HR images of different sizes; return the folder."""
    for number, size in enumerate([(64, 96), (50, 70), (130, 41)]):
        write_png(folder / f"{number}.png", photograph(*size, number))
    return folder


SELECT_MODEL = """\
import os{of_os}
import torch


def select_model(args, device):
    model_id = args.model_id
    if model_id == 0:
        # the baseline
        from models.team00_Base import Base
        name, data_range = f"{{model_id:02}}_Base", 1.0
        model = Base()
    {more}else:
        raise NotImplementedError(f"no model {{model_id}}")

    model.eval()
    tile = None
    for _, weight in model.named_parameters():
        weight.requires_grad = False
    return model.to(device), name, data_range, tile
"""


def write_checkout(folder: Path, of_os: str = ".path", more: str = "", newline: str = "\n") -> Path:
    """Write a repository in the organizers' layout, with one baseline, and commit it with git; return the folder."""
    (folder / "models").mkdir(parents=True)
    (folder / "model_zoo").mkdir()
    text = SELECT_MODEL.format(of_os=of_os, more=more).replace("\n", newline)
    (folder / "test_demo.py").write_bytes(text.encode())
    (folder / "models" / "team00_Base.py").write_text("from torch import nn\nclass Base(nn.Upsample):\n    pass\n")
    (folder / ".gitignore").write_text("*.pth\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "begin")
    return folder


def git(folder: Path, *words: str) -> None:
    """Run git in a folder, as somebody."""
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def on_a_full_disk(*_arguments):
    """Replace a function that writes, as if the disk were full."""
    raise OSError(errno.ENOSPC, "No space left on device")


SHARPNESS = 0.2
# Bicubic upscaling, and a convolution that adds little to it. Tests fill the placeholders with their own lines.
NETWORK = """
import os, signal, sys, threading, time
import torch
import torch.nn.functional as F
from torch import nn
{top}

class {name}(nn.Module):
    def __init__(self{parameters}):
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3, padding=1)
        self.up = nn.PixelShuffle(4)
        {constructor}

    def forward(self, x):
        {forward}
        return (F.interpolate(x, scale_factor=4, mode="bicubic") + self.up(self.conv(x))){end}
"""


def network_source(name="Net", top="", parameters="", constructor="pass", forward="pass", end="") -> str:
    """Return the source of a model file with one network, honest or as told."""
    return NETWORK.format(name=name, top=top, parameters=parameters, constructor=constructor, forward=forward, end=end)


def network_weights() -> dict[str, torch.Tensor]:
    """Return weights for `network_source` that sharpen, so that the network beats bicubic upscaling."""
    kernels = torch.zeros(3, 16, 3, 3, 3)  # of each colour's 16 outputs
    for colour in range(3):
        kernels[colour, :, colour] = -SHARPNESS / 9
        kernels[colour, :, colour, 1, 1] += SHARPNESS
    return {"conv.weight": kernels.reshape(48, 3, 3, 3), "conv.bias": torch.zeros(48)}


def write_model(folder: Path, file="team42_Net.py", weights=None, checkpoint="w.pth", **changes) -> tuple[Path, Path]:
    """Write a model file and its checkpoint; return their paths. `changes` are those of `network_source`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(network_source(**changes))
    torch.save(network_weights() if weights is None else weights, folder / checkpoint)
    return folder / file, folder / checkpoint


def model_words(paths: tuple[Path, Path]) -> tuple:
    """Return the command-line options for a model of `write_model`."""
    return "--model_file", paths[0], "--checkpoint", paths[1]


def write_table(file: Path, class_name="Net", **values) -> None:
    """Write the TOML file beside a model file; `values` are further keys."""
    table = {"file": file.name, "class": class_name, **values}
    file.with_suffix(".toml").write_text(tomli_w.dumps(table))


class Enlarge(nn.Module):
    """Bilinear x4, in the network's range: the quickest network."""

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=4, mode="bilinear")


def record(**changes) -> Record:
    """Return a complete results record with figures that can be checked by hand; `changes` are merged in."""
    values: dict[str, Any] = {
        "status": "complete",
        "model": {
            "id": 42,
            "name": "Net_1",
            "origin": "registry",
            "slug": "42_Net_1",
            "file": "models/team42_Net_1.py",
            "file_sha256": "f1",
            "class": "Net",
            "arguments": [],
            "data_range": 1.0,
            "checkpoint": "model_zoo/team42_Net_1.pth",
            "sha256": "c1",
            "provenance": "trained",
            "variant_of": None,
            "missing_weights": None,
            "ignored": None,
            "notes": [],
        },
        "repository": None,
        "environment": {
            "date": "2026-01-02T03:04:05+00:00",
            "device": "cuda",
            "gpu": "RTX",
            "cuda": "13.0",
            "cpu": "EPYC",
            "cores": 2,
            "threads": 2,
            "memory_gib": 8.0,
            "platform": "Linux",
            "python": "3.11",
            "libraries": {"torch": "2.13.0"},
        },
        "dataset": {
            "label": "sample (2 images)",
            "split": "valid",
            "folder": "data/sample",
            "images": 2,
            "has_hr": True,
            "sha256": "0123456789abcdef",
            "notes": [],
        },
        "images": {
            "name": ["a.png", "b.png"],
            "lr_pixels": [4, 4],
            "psnr": [26.0, 28.5],
            "ssim": [0.7, 0.8],
            "tile": [None, None],
            "nan": [False, False],
        },
        "runtime": {
            "clock": "cuda_events",
            "runs": [[10.0, 20.0], [30.0, 50.0]],
            "steady": None,
        },
        "memory": {"method": "gpu_allocated", "peak_mib": 965.476},
        "complexity": {
            "params": 550_992,
            "flops": 36_021_731_328,
            "activations": 88_080_384,
            "convs": 28,
            "input_shape": [1, 3, 256, 256],
        },
        "audit": None,
        "tiles": None,
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) and values[key] else value
    return msgspec.convert(values, Record)


def computed(**changes) -> dict[str, Any]:
    """Return the part `computed` of `record`'s complexity, as a change to that complexity."""
    values = {
        "macs": 36_021_731_328,
        "photograph_macs": 36_021_731_328,
        "traced_macs": 36_021_731_328,
        "summed_products": 0,
        "convs": 28,
        "activations": 88_080_384,
        "values": 550_992,
        "hidden_values": 0,
        "hidden": [],
        "made_weights": 0,
        "unpacked_weights": 0,
        "unknown": [],
    }
    return {"computed": values | changes}


def audit_record(**changes) -> dict[str, Any]:
    """Return the part of a record that an audit leaves, as a change for `record`."""
    return {"sandbox": "none"} | changes


def stored(results: Path, status="models") -> dict[str, dict]:
    """Return {shown name: record} of a results folder: of its complete "models", or of the "incomplete" ones."""
    records = json.loads((results / "records.json").read_text())[status]
    return {one["model"]["name"]: one for one in records.values()}


RECIPE = """
model = 7
batch = 2
hr_patch = 32
candidates = 1
seed = 7
output_init = 0.02
loss = "l1"
steps = 6
learning_rate = 1e-3
muon_learning_rate = 1e-3
warmup = 2
milestones = [4]
gamma = 0.5
cooldown = 0
betas = [0.9, 0.99]
eps = 1e-8
weight_decay = 0.0
clip_norm = 1.0
ema_decay = 0.9
form = "collapsed"
precision = "float32"
channels_last = true
compile = false
cuda_graph = false
log_every = 1
validate_every = 3
checkpoint_every = 2
"""
SMALL_CUT = ("--size", 64, "--step", 32, "--smallest", 32, "--images_per_shard", 2)
RECIPES = {  # a model with a training form, and one that is trained as it is, described as the registry does
    "collapsed": RECIPE,
    "plain": RECIPE.replace("model = 7", 'model = { file = "models/team00_SPAN.py", class = "SPAN" }').replace(
        '"collapsed"', '"plain"'
    ),
}
WEIGHTS_OF_RUN = {"collapsed": {"nanosr_train.pth", "team07_NanoSR.pth"}, "plain": {"team00_SPAN.pth"}}
both_kinds = pytest.mark.parametrize("recipe_path", RECIPES, indirect=True)


def command_module(name: str) -> ModuleType:
    """Return the module that `python -m NAME` runs: of a package its `__main__`."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    return importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)


def python(*arguments, timeout=200, **options) -> subprocess.CompletedProcess:
    """Run Python in a separate process, as a user does."""
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **options)


def two_processes() -> list:
    """Return the arguments with which torchrun runs a script in two processes, on a free port."""
    return ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@torch.no_grad()
def benchmark_psnr(model: nn.Module, shared: Path, benchmark: str, name: str = "*") -> float:
    """Return the mean PSNR [dB] of a network with range [0, 1] on `shared`/benchmarks/`benchmark`, or on one image.

    Written from the protocol's definition, with nothing of the project's metrics in it.
    """
    results = []
    for hr_path in sorted((shared / "benchmarks" / benchmark / "HR").glob(f"{name}.png")):
        lr = torch.from_numpy(read_rgb(hr_path.parents[1] / "LR" / f"{hr_path.stem}x4.png"))
        sr = model(lr.permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
        sr = (sr.clamp(0, 1) * 255).round().double().numpy()
        hr = read_rgb(hr_path)[: sr.shape[0], : sr.shape[1]].astype(np.float64)
        mse = np.mean((sr - hr)[4:-4, 4:-4] ** 2)
        results.append(10 * np.log10(255**2 / mse))
    return float(np.mean(results))


def shipped_quality() -> list[dict[str, str]]:
    """Return the documented quality of the shipped weights, a row for each model and data set."""
    with open(ROOT / "model_zoo" / "quality.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
