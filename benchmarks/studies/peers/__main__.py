"""Train NanoSR and its ancestors: the package's docstring says how."""

import argparse
import math
from pathlib import Path

import numpy as np

import benchmarks.studies.peers
from benchmarks.studies.peers import PEERS, RECIPE, SWEEP_FILE, Peer, read_sweep, run, run_folder
from benchmarks.studies.peers.table import table
from training.log import read_log
from training.recipe import load_recipe
from utils.errors import DivergedError, HarnessError, exit_on_harness_error
from utils.files import LOG_FILE, write_json
from utils.options import duration, parse

FACTORS = (0.5, 1.0, 2.0)
SWEEP_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=benchmarks.studies.peers.__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sweep", "train", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--train_dir", type=Path, default=Path("data/train"), help="folder that training.prepare made")
    parser.add_argument("--validation_dir", type=Path, help="data folder for the curves (default: the sample)")
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], metavar="NAME")
    parser.add_argument("--first_seed", action="store_true", help="train with the first seed alone")
    parser.add_argument("--time_limit", type=duration, help="of each run, then stop at a checkpoint")
    parser.add_argument("--data_dir", nargs="+", type=Path, default=[], help="data folders that `table` evaluates on")
    parser.add_argument("--published", type=Path, help="folder of published weights, named as in the registry")
    args = parse(parser)
    peers = [peer for peer in PEERS if args.only is None or peer.name in args.only]
    {"sweep": sweep, "train": train, "table": table}[args.what](peers, args)


def sweep(peers: list[Peer], args: argparse.Namespace) -> None:
    """Try FACTORS on the learning rates of each network; write {name: {factor: loss}} to SWEEP_FILE."""
    recipe = load_recipe(RECIPE)
    share = SWEEP_STEPS / recipe.steps
    milestones = [round(step * share) for step in recipe.milestones]
    shorter = {"steps": SWEEP_STEPS, "milestones": milestones, "log_every": 50, "validate_every": SWEEP_STEPS}
    found = read_sweep(args.out)
    for peer in peers:
        while (factor := next_factor(found.get(peer.name, {}))) is not None:
            run_dir = args.out / "sweep" / f"{peer.name}_{factor:g}"
            try:
                run(peer.changes(factor, recipe.seed) | shorter, run_dir, args)
                loss = last_loss(run_dir)
            except DivergedError:
                loss = math.inf
            found.setdefault(peer.name, {})[str(factor)] = loss
            write_json(args.out / SWEEP_FILE, found)
            print(f"{peer.name}, rates times {factor:g}: loss {found[peer.name][str(factor)]:.6f}")


def next_factor(losses: dict[str, float]) -> float | None:
    """Return the factor to try next, None when the best one has a worse one on either side."""
    for factor in FACTORS:
        if str(factor) not in losses:
            return factor
    tried = sorted(map(float, losses))
    best = best_factor(losses)
    if best == tried[0]:
        return best / 2
    return 2 * best if best == tried[-1] else None


def best_factor(losses: dict[str, float]) -> float:
    """Return the factor with the lowest loss."""
    return float(min(losses, key=lambda factor: losses[factor]))


def last_loss(run_dir: Path) -> float:
    """Return the mean training loss over the last fifth of a run's log."""
    losses = [float(row["loss"]) for row in read_log(run_dir / LOG_FILE)]
    return float(np.mean(losses[-(len(losses) // 5) :]))


def train(peers: list[Peer], args: argparse.Namespace) -> None:
    """Train each network with each of its seeds, with the learning rates that were best in the sweep.

    Learning rates that diverge in the longer run count as the worst from then on, and the next best are used.
    """
    found = read_sweep(args.out)
    for peer in peers:
        losses = found.get(peer.name, {})
        if next_factor(losses) is not None:
            raise HarnessError(f"{args.out / SWEEP_FILE}: no complete sweep of {peer.name}; run `sweep` first")
        for seed in peer.seeds[:1] if args.first_seed else peer.seeds:
            run_dir = run_folder(args.out, peer, seed)
            while not train_once(peer, seed, run_dir, factor := best_factor(losses), args):
                run_dir.rename(run_dir.with_name(f"{run_dir.name}_rates_times_{factor:g}_diverged"))
                losses[str(factor)] = math.inf
                write_json(args.out / SWEEP_FILE, found)


def train_once(peer: Peer, seed: int, run_dir: Path, factor: float, args: argparse.Namespace) -> bool:
    """Train with the learning rates times `factor`; return whether it succeeded."""
    try:
        run(peer.changes(factor, seed), run_dir, args)
    except DivergedError:
        return False
    return True


if __name__ == "__main__":
    exit_on_harness_error(main)
