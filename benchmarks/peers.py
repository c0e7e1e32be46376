"""NanoSR and its ancestors under equal conditions: python -m benchmarks.peers sweep | train | table --out runs/peers

Method. Every network is trained from scratch by training/recipes/equal_conditions.toml: the same patches in the same
order (they hang on the seed alone), the same number of steps, the same schedule. Only the learning rates are the
network's own: both are multiplied by one factor, chosen by `sweep` among FACTORS in short runs of the whole schedule,
by the mean training loss over their last fifth; the loss is on the same patches for all, and no benchmark takes part in
the choice. `train` goes on with what is not finished; `--only NAME` and `--minutes M` limit it. `table` reads the runs'
logs and the results that eval.py wrote for their weights, prints the comparison and draws the curves.

    python -m training.prepare --hr PHOTOGRAPHS --out data/train
    python -m benchmarks.peers sweep --data data/train
    python -m benchmarks.peers train --data data/train --validation Set14
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.log import read_log
from training.recipe import load_recipe
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import ROOT, write_json

RECIPE = ROOT / "training" / "recipes" / "equal_conditions.toml"
FACTORS = (0.5, 1.0, 2.0)
SWEEP_STEPS = 1000
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Peer:
    """A network of the comparison: its id in the registry, how it is trained, and with which seeds."""

    name: str
    model: int
    form: str = "collapsed"
    output_init: float = 0.02  # 0 where the network adds to an enlarged image
    seeds: tuple[int, ...] = (2026,)


PEERS = (
    Peer("SPAN", 126, seeds=(2026, 2027)),
    Peer("EFDN", 0, form="plain"),
    Peer("NanoSR", 7, seeds=(2026, 2027)),
    Peer("PlainUSR", 124),
    Peer("PAN", 120, form="plain", output_init=0.0),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sweep", "train"))
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--data", type=Path, default=Path("data/train"), help="folder that training.prepare made")
    parser.add_argument("--validation", type=Path, help="data folder for the curves (default: the sample)")
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], metavar="NAME")
    parser.add_argument("--minutes", type=float, help="of each run, then stop at a checkpoint")
    args = parser.parse_args()
    peers = [peer for peer in PEERS if args.only is None or peer.name in args.only]
    {"sweep": sweep, "train": train}[args.what](peers, args)


def sweep(peers, args):
    """Try FACTORS on the rates of each network; write {name: {factor: loss}} to SWEEP_FILE."""
    recipe = load_recipe(RECIPE)
    share = SWEEP_STEPS / recipe.steps
    milestones = [round(step * share) for step in recipe.milestones]
    shorter = [f"steps={SWEEP_STEPS}", f"milestones={milestones}", "log_every=50", f"validate_every={SWEEP_STEPS}"]
    found = read_sweep(args.out)
    for peer in peers:
        for factor in FACTORS:
            if str(factor) in found.get(peer.name, {}):
                continue
            run_dir = args.out / "sweep" / f"{peer.name}_{factor:g}"
            run(peer, factor, recipe.seed, run_dir, shorter, args)
            found.setdefault(peer.name, {})[str(factor)] = last_loss(run_dir)
            write_json(args.out / SWEEP_FILE, found)
            print(f"{peer.name}, rates times {factor:g}: loss {found[peer.name][str(factor)]:.6f}")


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
        if found.get(peer.name, {}).keys() != {str(factor) for factor in FACTORS}:
            raise HarnessError(f"{args.out / SWEEP_FILE}: no complete sweep of {peer.name}; run `sweep` first")
        factor = float(min(found[peer.name], key=found[peer.name].get))
        for seed in peer.seeds:
            run(peer, factor, seed, run_folder(args.out, peer, seed), [], args)


def run_folder(out, peer, seed):
    """Where a run of the comparison lies."""
    return out / (peer.name if seed == peer.seeds[0] else f"{peer.name}_seed{seed}")


def run(peer, factor, seed, run_dir, changes, args):
    """Run train.py, or go on with it. Raises HarnessError if it fails."""
    recipe = load_recipe(RECIPE)
    changes = [
        f"model={peer.model}",
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


if __name__ == "__main__":
    exit_on_harness_error(main)
