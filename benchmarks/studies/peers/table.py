"""The finished runs as tables and curves."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.studies.peers import RECIPE, Losses, Peer, as_settings, read_sweep, run_folder
from benchmarks.training import Step, random_batch, time_steps
from training.forms import trained_model
from training.log import read_log
from training.loop import Trainer
from training.recipe import load_recipe
from training.setup import set_up
from training.validation import validation_psnr
from utils.data.datasets import Dataset, open_dataset
from utils.errors import HarnessError
from utils.files import LOG_FILE
from utils.measure.allocator import keep_freed_memory
from utils.measure.complexity import measure_complexity
from utils.measure.environment import describe_environment, machine_line
from utils.measure.runtime import timed_forward
from utils.zoo.registry import build_model, find_entry, load_model, read_registry, with_checkpoint

LR_SHAPE, ROUNDS = (1, 3, 339, 510), 7  # of the timed passes
WARMUP, STEP_ROUNDS = 3, 15
Logs = dict[tuple[Peer, int], list[dict[str, Any]]]  # by network and seed
COUNTS = {"params": 6, "flops": 9, "activations": 6}  # of a Complexity: the power of ten that is shown


def table(peers: list[Peer], args: argparse.Namespace) -> None:
    """Print the comparison of the finished runs as Markdown; draw their curves to `--out`/curves.png."""
    steps = load_recipe(RECIPE).steps
    logs = {
        (peer, seed): read_log(run_folder(args.out, peer, seed) / LOG_FILE) for peer in peers for seed in peer.seeds
    }
    logs = {key: rows for key, rows in logs.items() if rows and rows[-1]["step"] == steps}
    if not logs:
        raise HarnessError(f"{args.out}: no finished run of {steps} steps; run `train` first")
    print_sweep(peers, read_sweep(args.out))
    print_quality(logs, args)
    print_cost(logs)
    draw_curves(logs, args.out / "curves.png")


def print_sweep(peers: list[Peer], found: Losses) -> None:
    """Print the training loss of each network with each factor on the learning rates."""
    factors = sorted({float(factor) for losses in found.values() for factor in losses})
    print_head(["network", *(f"rates times {factor:g}" for factor in factors)])
    for peer in peers:
        losses = found.get(peer.name, {})
        cells = [f"{losses[str(factor)]:.6f}" if str(factor) in losses else "" for factor in factors]
        cells = ["diverged" if cell == "inf" else cell for cell in cells]
        print_row([peer.name, *cells])


def print_quality(logs: Logs, args: argparse.Namespace) -> None:
    """Print the PSNR of each run on each data set, and of the published weights."""
    datasets = [open_dataset(folder) for folder in args.data_dir]
    names = [folder.name for folder in args.data_dir]
    published = [f"{name}, published" for name in names] if args.published else []
    print_head(["network", "seed", *names, *published])
    for (peer, seed), _ in logs.items():
        file = trained_model(peer.model).plain_file
        values = qualities(peer.model, run_folder(args.out, peer, seed) / file, datasets)
        if args.published:
            values += qualities(peer.model, args.published / file, datasets)
        print_row([peer.name, seed, *(f"{value:.3f}" for value in values)])


def qualities(id_: int, checkpoint: Path, datasets: list[Dataset]) -> list[float]:
    """Return the mean PSNR [dB] of a network in the registry with these weights on each data set."""
    loaded = load_model(with_checkpoint(find_entry(id_, read_registry()), checkpoint), "cpu")
    return [validation_psnr(loaded.model, loaded.entry, data, torch.device("cpu")) for data in datasets]


def print_cost(logs: Logs) -> None:
    """Print the cost of each network: counts, and the times of a pass and of the training."""
    environment = describe_environment(torch.device("cpu"))
    print(f"\n{machine_line(environment)}, torch {torch.__version__}")
    peers = list(dict.fromkeys(peer for peer, _ in logs))
    models = {peer: build_model(find_entry(peer.model, read_registry())).eval() for peer in peers}
    lr = torch.rand(LR_SHAPE)
    forward: dict[Any, Step] = {peer: partial(timed_pass, model) for peer, model in models.items()}
    passes = medians(time_steps(forward, (lr, lr), 0, ROUNDS))
    steps = step_times(peers)
    counted = ["params [M]", "FLOPs [G]", "acts [M]", "convs"]
    print_head(["network", *counted, "pass [ms]", "ratio", "step [ms]", "ratio", "training [min]"])
    for peer in peers:
        counts = measure_complexity(models[peer])
        millions = [f"{getattr(counts, key) / 10**power:.3f}" for key, power in COUNTS.items()]
        cells = [peer.name, *millions, counts.convs]
        for times in (passes, steps):
            cells += [f"{times[peer]:.0f}", f"{times[peer] / times[peers[0]]:.2f}"]
        print_row([*cells, f"{steps[peer] * load_recipe(RECIPE).steps / 60000:.1f}"])


def timed_pass(model: nn.Module, lr: Tensor, _hr: Tensor) -> None:
    """Run a forward pass."""
    timed_forward(model, lr)


def step_times(peers: list[Peer]) -> dict[Any, float]:
    """Return {peer: median time of a training step [ms]}."""
    keep_freed_memory()
    steps: dict[Any, Step] = {}
    for peer in peers:
        recipe = load_recipe(RECIPE, as_settings(peer.changes(1, peer.seeds[0])))
        steps[peer] = Trainer(set_up(recipe, "cpu")).update
    batch = random_batch(load_recipe(RECIPE), torch.device("cpu"))
    return medians(time_steps(steps, batch, WARMUP, STEP_ROUNDS))


def medians(times: dict[Any, list[float]]) -> dict[Any, float]:
    """Return {name: median} of {name: values}."""
    return {name: float(np.median(values)) for name, values in times.items()}


def print_head(cells: Sequence[object]) -> None:
    """Print the head of a Markdown table whose first column is text."""
    print(f"\n| {' | '.join(map(str, cells))} |\n| --- |{' ---: |' * (len(cells) - 1)}")


def print_row(cells: Sequence[object]) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |")


def draw_curves(logs: Logs, path: Path) -> None:
    """Draw the loss, as its mean over a thousand steps, and the validation PSNR of all runs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    colours = {peer: f"C{number}" for number, peer in enumerate(dict.fromkeys(peer for peer, _ in logs))}
    for (peer, seed), rows in logs.items():
        again = seed != peer.seeds[0]
        style = {"color": colours[peer], "linestyle": ":" if again else "-"}
        steps, losses = ([float(row[key]) for row in rows] for key in ("step", "loss"))
        smooth = np.convolve(losses, np.ones(10) / 10, mode="valid")
        left.plot(steps[9:], smooth, **style, label=f"{peer.name}, seed {seed}" if again else peer.name)
        validated = [(row["step"], float(row["validation_psnr"])) for row in rows if row["validation_psnr"]]
        right.plot(*zip(*validated, strict=True), **style)
    left.set(xlabel="step", ylabel="L1 loss, mean over 1000 steps", yscale="log", title="training loss")
    right.set(xlabel="step", ylabel="PSNR [dB], RGB", title="validation")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
