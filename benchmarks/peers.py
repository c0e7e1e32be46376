"""NanoSR and its ancestors under equal conditions: python -m benchmarks.peers sweep | train | table --out runs/peers

Method. Every network is trained from scratch by training/recipes/equal_conditions.toml: the same patches in the same
order (they hang on the seed alone), the same number of steps, the same schedule. Only the learning rates are the
network's own: both are multiplied by one factor, chosen by `sweep` among FACTORS, and beyond them while the best lies
at an end, in short runs of the whole schedule, by the mean training loss over their last fifth; the loss is on the same
patches for all, and no benchmark takes part in the choice. `train` goes on with what is not finished; `--only NAME` and
`--minutes M` limit it.

`table` prints, for every finished run, the PSNR (RGB, as the protocol has it) on data folders, beside that of published
weights if there are any; counts and the time of a forward pass on 510 x 339, the networks in turn, the median of their
rounds, as a ratio to the first; training time, the median time of a hundred steps times their number, so that a pause
does not count; and draws the curves of the logs.

    python -m training.prepare --hr PHOTOGRAPHS --out data/train
    python -m benchmarks.peers sweep
    python -m benchmarks.peers train --validation Set14
    python -m benchmarks.peers table --sets Set5 Set14 Photo2K --published WEIGHTS
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

from training.forms import trained_model
from training.log import read_log
from training.recipe import load_recipe
from training.validation import validation_psnr
from utils.data.datasets import open_dataset
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import ROOT, write_json
from utils.measure.complexity import measure_complexity
from utils.measure.environment import describe_environment, machine_line
from utils.measure.runtime import timed_forward
from utils.zoo.registry import find_entry, load_model, read_registry

RECIPE = ROOT / "training" / "recipes" / "equal_conditions.toml"
FACTORS = (0.5, 1.0, 2.0)
SWEEP_STEPS = 1000
SWEEP_FILE = "sweep.json"
LR_SHAPE, ROUNDS = (1, 3, 339, 510), 7  # of the timed passes
COUNTS = {"params": 6, "flops": 9, "activations": 6}  # of a Complexity: the power of ten that is shown


@dataclass(frozen=True)
class Peer:
    """A network of the comparison: its id in the registry, how it is trained, and with which seeds.

    `trained`, if it is not that id, is the recipe's `model`, in TOML.
    """

    name: str
    model: int
    trained: str = ""
    form: str = "collapsed"
    output_init: float = 0.02  # 0 where the network adds to an enlarged image
    seeds: tuple[int, ...] = (2026,)


PLAIN_NANOSR = '{ file = "models/team07_NanoSR.py", class = "NanoSR_inference", arguments = [3, 3] }'
PEERS = (
    Peer("SPAN", 126, seeds=(2026, 2027)),
    Peer("EFDN", 0, form="plain"),
    Peer("NanoSR", 7, seeds=(2026, 2027)),
    Peer("NanoSR_plain", 7, PLAIN_NANOSR, form="plain"),
    Peer("PlainUSR", 124),
    Peer("PAN", 120, form="plain", output_init=0.0),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sweep", "train", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--data", type=Path, default=Path("data/train"), help="folder that training.prepare made")
    parser.add_argument("--validation", type=Path, help="data folder for the curves (default: the sample)")
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], metavar="NAME")
    parser.add_argument("--first_seed", action="store_true", help="train with the first seed alone")
    parser.add_argument("--minutes", type=float, help="of each run, then stop at a checkpoint")
    parser.add_argument("--sets", nargs="+", type=Path, default=[], help="data folders that `table` evaluates on")
    parser.add_argument("--published", type=Path, help="folder of published weights, named as in the registry")
    args = parser.parse_args()
    peers = [peer for peer in PEERS if args.only is None or peer.name in args.only]
    {"sweep": sweep, "train": train, "table": table}[args.what](peers, args)


def sweep(peers, args):
    """Try FACTORS on the rates of each network; write {name: {factor: loss}} to SWEEP_FILE."""
    recipe = load_recipe(RECIPE)
    share = SWEEP_STEPS / recipe.steps
    milestones = [round(step * share) for step in recipe.milestones]
    shorter = [f"steps={SWEEP_STEPS}", f"milestones={milestones}", "log_every=50", f"validate_every={SWEEP_STEPS}"]
    found = read_sweep(args.out)
    for peer in peers:
        while (factor := next_factor(found.get(peer.name, {}))) is not None:
            run_dir = args.out / "sweep" / f"{peer.name}_{factor:g}"
            run(peer, factor, recipe.seed, run_dir, shorter, args)
            found.setdefault(peer.name, {})[str(factor)] = last_loss(run_dir)
            write_json(args.out / SWEEP_FILE, found)
            print(f"{peer.name}, rates times {factor:g}: loss {found[peer.name][str(factor)]:.6f}")


def next_factor(losses):
    """Return the factor to try next, None when the best one has a worse one on either side."""
    for factor in FACTORS:
        if str(factor) not in losses:
            return factor
    tried = sorted(map(float, losses))
    best = best_factor(losses)
    if best == tried[0]:
        return best / 2
    return 2 * best if best == tried[-1] else None


def best_factor(losses):
    """The factor with the lowest loss."""
    return float(min(losses, key=losses.get))


def last_loss(run_dir):
    """Mean training loss over the last fifth of a run's log."""
    losses = [float(row["loss"]) for row in read_log(run_dir / "log.csv")]
    return float(np.mean(losses[-(len(losses) // 5) :]))


def read_sweep(folder):
    """Return {name: {factor: loss}}, empty without a sweep."""
    file = folder / SWEEP_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def train(peers, args):
    """Train each network with each of its seeds, with the rates that the sweep liked best."""
    found = read_sweep(args.out)
    for peer in peers:
        if next_factor(found.get(peer.name, {})) is not None:
            raise HarnessError(f"{args.out / SWEEP_FILE}: no complete sweep of {peer.name}; run `sweep` first")
        factor = best_factor(found[peer.name])
        for seed in peer.seeds[:1] if args.first_seed else peer.seeds:
            run(peer, factor, seed, run_folder(args.out, peer, seed), [], args)


def run_folder(out, peer, seed):
    """Where a run of the comparison lies."""
    return out / (peer.name if seed == peer.seeds[0] else f"{peer.name}_seed{seed}")


def run(peer, factor, seed, run_dir, changes, args):
    """Run train.py, or go on with it. Raises HarnessError if it fails."""
    recipe = load_recipe(RECIPE)
    changes = [
        f"model={peer.trained or peer.model}",
        f'form="{peer.form}"',
        f"output_init={peer.output_init}",
        f"seed={seed}",
        f"learning_rate={factor * recipe.learning_rate:g}",
        f"muon_learning_rate={factor * recipe.muon_learning_rate:g}",
        *changes,
    ]
    words = [sys.executable, ROOT / "train.py", RECIPE, "--data", args.data, "--run_dir", run_dir, "--resume"]
    words += ["--validation", args.validation] if args.validation else []
    words += ["--minutes", args.minutes] if args.minutes else []
    if subprocess.run([*map(str, words), "--set", *changes]).returncode:
        raise HarnessError(f"{run_dir}: the training failed; what it said is above")


def table(peers, args):
    """Print the comparison of the finished runs as Markdown; draw their curves to `--out`/curves.png."""
    steps = load_recipe(RECIPE).steps
    logs = {
        (peer, seed): read_log(run_folder(args.out, peer, seed) / "log.csv") for peer in peers for seed in peer.seeds
    }
    logs = {key: rows for key, rows in logs.items() if rows and rows[-1]["step"] == steps}
    if not logs:
        raise HarnessError(f"{args.out}: no finished run of {steps} steps; run `train` first")
    print_sweep(peers, read_sweep(args.out))
    print_quality(logs, args)
    print_cost(logs)
    draw_curves(logs, args.out / "curves.png")


def print_sweep(peers, found):
    """The training loss of each network with each factor on the rates."""
    factors = sorted({float(factor) for losses in found.values() for factor in losses})
    print_head(["network", *(f"rates times {factor:g}" for factor in factors)])
    for peer in peers:
        losses = found.get(peer.name, {})
        cells = [f"{losses[str(factor)]:.6f}" if str(factor) in losses else "" for factor in factors]
        print_row([peer.name, *cells])


def print_quality(logs, args):
    """PSNR of each run on each set, and of the published weights."""
    datasets = [open_dataset(folder) for folder in args.sets]
    names = [folder.name for folder in args.sets]
    published = [f"{name}, published" for name in names] if args.published else []
    print_head(["network", "seed", *names, *published])
    for (peer, seed), _ in logs.items():
        file = trained_model(peer.model).plain_file
        cells = qualities(peer, run_folder(args.out, peer, seed) / file, datasets)
        if args.published:
            cells += qualities(peer, args.published / file, datasets)
        print_row([peer.name, seed, *cells])


def qualities(peer, checkpoint, datasets):
    """Mean PSNR of a network with these weights on each data set, as text."""
    loaded = load_model(find_entry(peer.model, read_registry()), "cpu", checkpoint)
    results = [validation_psnr(loaded.model, data, "cpu", loaded.entry.data_range) for data in datasets]
    return [f"{value:.3f}" for value in results]


def print_cost(logs):
    """What each network takes: counts, and the times of a pass and of the training."""
    environment = describe_environment(torch.device("cpu"))
    print(f"\n{machine_line(environment)}, torch {torch.__version__}")
    peers = list(dict.fromkeys(peer for peer, _ in logs))
    models = {peer: load_model(find_entry(peer.model, read_registry()), "cpu").model for peer in peers}
    times = {peer: [] for peer in peers}
    lr = torch.rand(LR_SHAPE)
    with torch.no_grad():
        for number in range(1 + ROUNDS):  # the first warms up
            for peer, model in models.items():
                milliseconds = timed_forward(model, lr)[1]
                times[peer] += [milliseconds] if number else []
    print_head(["network", "params [M]", "FLOPs [G]", "acts [M]", "convs", "pass [ms]", "ratio", "training [min]"])
    for peer in peers:
        counts = measure_complexity(models[peer])
        median, reference = np.median(times[peer]), np.median(times[peers[0]])
        minutes = [training_minutes(rows) for (other, _), rows in logs.items() if other == peer]
        millions = [f"{getattr(counts, key) / 10**power:.3f}" for key, power in COUNTS.items()]
        print_row(
            [peer.name, *millions, counts.convs, f"{median:.0f}", f"{median / reference:.2f}", f"{min(minutes):.1f}"]
        )


def training_minutes(rows):
    """The median time between two rows of a log, times the number of steps."""
    steps, seconds = (np.array([float(row[key]) for row in rows]) for key in ("step", "seconds"))
    return float(np.median(np.diff(seconds) / np.diff(steps)) * steps[-1] / 60)


def print_head(cells):
    """The head of a Markdown table whose first column is text."""
    print(f"\n| {' | '.join(cells)} |\n| --- |{' ---: |' * (len(cells) - 1)}")


def print_row(cells):
    """A row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |")


def draw_curves(logs, path):
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


if __name__ == "__main__":
    exit_on_harness_error(main)
