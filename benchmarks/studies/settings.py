"""Compare training settings: python -m benchmarks.studies.settings run | table --out runs/study

Method. NanoSR is trained from scratch by training/recipes/equal_conditions.toml, shortened to 3000 steps, and again
with one setting changed at a time. All runs see the same number of HR pixels: with another batch or patch size, the
number of steps differs, and warm-up and milestones move with it. Each setting is run with two seeds. `table` prints the
PSNR (RGB, as in the protocol) on data folders as the difference to the unchanged run of the same seed, so that the
seed's effect on both cancels. A setting pays if it does with both seeds. The weights are those after the last step,
when the learning rates have decayed. Their running average, which is exported, depends on the number of steps and has
its own row. `run` resumes unfinished runs. Two processes, with one seed and one core each, do an eighth more than one
process on two cores:

    taskset -c 0 python -m benchmarks.studies.settings run --seeds 2026 &
    taskset -c 1 python -m benchmarks.studies.settings run --seeds 2027 &
    python -m benchmarks.studies.settings table --data_dir Set5 Set14 Photo2K
"""

import argparse
import functools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.peers import RECIPE, run
from benchmarks.studies.peers.table import print_head, print_row
from training.forms import build, trained_model
from training.log import read_log
from training.loop import STATE_FILE
from training.recipe import load_recipe
from training.validation import validation_psnr
from utils.data.datasets import Dataset, open_dataset
from utils.errors import DivergedError, HarnessError, exit_on_harness_error
from utils.files import LOG_FILE
from utils.options import duration, parse
from utils.zoo.checkpoints import save_atomically

STEPS = 3000
SEEDS = (2026, 2027)
LAST = 0.1  # of a run, where `last` applies
CONSTANT = {"milestones": [], "gamma": 1.0}


@dataclass(frozen=True, eq=False)
class Setting:
    """A name for the table, the changes to the recipe, and further changes in the last tenth of the run.

    A `cooldown` of at most 1 is a share of the steps.
    """

    name: str
    changes: dict = field(default_factory=dict)
    last: dict = field(default_factory=dict)


BASE = load_recipe(RECIPE)
SETTINGS = (
    Setting("as the recipe has it"),
    Setting("rates fall linearly to 0", CONSTANT | {"cooldown": 1.0}),
    Setting("rates constant, then linearly to 0 over the last third", CONSTANT | {"cooldown": 1 / 3}),
    Setting("Muon's rate times 2", {"muon_learning_rate": 2 * BASE.muon_learning_rate}),
    Setting("Muon's rate times 0.5", {"muon_learning_rate": 0.5 * BASE.muon_learning_rate}),
    Setting("AdamW's rate times 2", {"learning_rate": 2 * BASE.learning_rate}),
    Setting("AdamW's rate times 0.5", {"learning_rate": 0.5 * BASE.learning_rate}),
    Setting("warm-up five times as long", {"warmup": 5 * BASE.warmup}),
    Setting("batch 8", {"batch": 8}),
    Setting("batch 32", {"batch": 32}),
    Setting("patches of 96", {"hr_patch": 96}),
    Setting("patches of 192", {"hr_patch": 192}),
    Setting("Charbonnier loss", {"loss": "charbonnier"}),
    Setting("L1 and frequency loss", {"loss": "l1+frequency"}),
    Setting("one of 4 patches, by detail", {"candidates": 4}),
    Setting("last tenth in float32", last={"precision": "float32"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--train_dir", type=Path, default=Path("data/train"), help="folder that training.prepare made")
    parser.add_argument("--validation_dir", type=Path, help="data folder for the curves (default: the sample)")
    parser.add_argument("--time_limit", type=duration, help="of each run, then stop at a checkpoint")
    parser.add_argument("--only", nargs="+", type=int, metavar="NUMBER", help="of the settings, counted from 0")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--data_dir", nargs="+", type=Path, default=[], help="data folders that `table` evaluates on")
    args = parse(parser)
    if unknown := set(args.only or ()) - set(range(len(SETTINGS))):
        raise HarnessError(f"--only {unknown.pop()}: settings are numbered 0 to {len(SETTINGS) - 1}")
    settings = SETTINGS if args.only is None else [SETTINGS[number] for number in args.only]
    {"run": run_all, "table": table}[args.what](settings, args)


def changes_for(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the changes to the recipe: {key: value}. STEPS are for the recipe's own batch and patch size."""
    recipe = asdict(BASE) | setting.changes
    own = BASE.batch * BASE.hr_patch**2 / (recipe["batch"] * recipe["hr_patch"] ** 2)
    run_steps = round(STEPS * own)
    share = run_steps / BASE.steps
    changed = {
        "seed": seed,
        "steps": run_steps,
        "warmup": round(recipe["warmup"] * own),
        "milestones": [round(milestone * share) for milestone in recipe["milestones"]],
        "validate_every": run_steps,
        "checkpoint_every": min(BASE.checkpoint_every, run_steps),
    }
    if 0 < recipe["cooldown"] <= 1:
        changed["cooldown"] = round(run_steps * recipe["cooldown"])
    return {"model": BASE.model} | setting.changes | changed


def run_all(settings: Sequence[Setting], args: argparse.Namespace) -> None:
    """Train with every setting and seed, all seeds of one before the next."""
    for setting in settings:
        for seed in args.seeds:
            if is_finished(setting, seed, args.out):
                continue
            try:
                run_one(setting, seed, args)
            except DivergedError as error:
                print(error)


def run_folder(setting: Setting, seed: int, out: Path) -> Path:
    """Return the folder of a run of the study."""
    return out / re.sub(r"\W+", "_", f"{setting.name} {seed}")


def is_finished(setting: Setting, seed: int, out: Path) -> bool:
    """Return whether a run has finished all its steps."""
    rows = read_log(run_folder(setting, seed, out) / LOG_FILE)
    return bool(rows) and rows[-1]["step"] == changes_for(setting, seed)["steps"]


def run_one(setting: Setting, seed: int, args: argparse.Namespace) -> None:
    """Train with one setting. If its last tenth differs, stop before it and resume with the changed recipe."""
    run_dir, changes = run_folder(setting, seed, args.out), changes_for(setting, seed)
    if setting.last:
        state_file, early = run_dir / STATE_FILE, round(changes["steps"] * (1 - LAST))
        state = torch.load(state_file, weights_only=True) if state_file.exists() else None
        if state is None or state["step"] < early:
            run(changes | {"steps": early}, run_dir, args)
            state = torch.load(state_file, weights_only=True)
        if state["step"] < early:
            return  # --time_limit
        state["recipe"] |= {"steps": changes["steps"], **setting.last}
        save_atomically(state, state_file)
    run(changes | setting.last, run_dir, args)


def table(settings: Sequence[Setting], args: argparse.Namespace) -> None:
    """Print as Markdown the PSNR of the unchanged runs, and the differences of their running average and other runs."""
    rows = [(setting.name, setting, False) for setting in settings]
    if settings[0] is SETTINGS[0]:
        rows.insert(1, ("its running average", SETTINGS[0], True))
    datasets = [open_dataset(folder) for folder in args.data_dir]
    print_head(["setting", *(f"{folder.name}, {seed}" for folder in args.data_dir for seed in args.seeds)])
    for name, setting, averaged in rows:
        cells = []
        for dataset in datasets:
            for seed in args.seeds:
                main = quality(SETTINGS[0], seed, dataset, args.out)
                found = quality(setting, seed, dataset, args.out, averaged)
                if setting is SETTINGS[0] and found and not averaged:
                    cells.append(f"{found:.3f}")
                else:
                    cells.append(f"{found - main:+.3f}" if main and found else "")
        print_row([name, *cells])


@functools.cache
def quality(setting: Setting, seed: int, dataset: Dataset, out: Path, averaged: bool = False) -> float | None:
    """Return the mean PSNR [dB] of a run's last weights, or their running average; None if the run is unfinished."""
    if not is_finished(setting, seed, out):
        return None
    trained = trained_model(BASE.model)
    network = build(trained)
    state = torch.load(run_folder(setting, seed, out) / STATE_FILE, weights_only=True)
    network.load_state_dict(state["params_ema" if averaged else "params"])
    return validation_psnr(network, trained.entry, dataset, torch.device("cpu"))


if __name__ == "__main__":
    exit_on_harness_error(main)
