"""Compare NanoSR and its ancestors under equal conditions: python -m benchmarks.studies.peers sweep | train | table

Method. Every network is trained from scratch by training/recipes/equal_conditions.toml: the same patches in the same
order (they depend only on the seed), the same number of steps, the same schedule. Only the learning rates are the
network's own: both are multiplied by one factor. `sweep` chooses it among FACTORS, and beyond them while the best lies
at an end. It runs the whole schedule, shortened, and compares the mean training loss over the last fifth of each run.
The loss is on the same patches for all networks, and no benchmark takes part in the choice. Learning rates that
diverge, also later in `train`, count as the worst. `train` resumes unfinished runs; `--only NAME` and `--time_limit M`
limit it.

`table` prints for every finished run

- the PSNR (RGB, as in the protocol) on data folders, and that of published weights if there are any;
- the counts of the network;
- the times of a forward pass on 510 x 339 and of a training step on this machine, as medians of rounds in which the
  networks take turns, and as ratios to the first network;
- the time of the recipe's steps at that rate.

It also draws the curves of the logs.

    python -m training.prepare --hr PHOTOGRAPHS --out data/train
    python -m benchmarks.studies.peers sweep
    python -m benchmarks.studies.peers train --validation_dir Set14
    python -m benchmarks.studies.peers table --data_dir Set5 Set14 Photo2K --published WEIGHTS
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.training import PLAIN_NANOSR
from training.recipe import load_recipe
from utils.errors import DivergedError, HarnessError
from utils.files import ROOT
from utils.zoo.registry import ModelTable

RECIPE = ROOT / "training" / "recipes" / "equal_conditions.toml"
SWEEP_FILE = "sweep.json"
Losses = dict[str, dict[str, float]]  # by the names of network and factor


@dataclass(frozen=True, eq=False)
class Peer:
    """A network of the comparison: its id in the registry, how it is trained, and with which seeds.

    `trained`, if it is not that id, is the recipe's `model`.
    """

    name: str
    model: int
    trained: ModelTable | None = None
    form: str = "collapsed"
    output_init: float = 0.02  # 0 where the network adds to an enlarged image
    seeds: tuple[int, ...] = (2026,)

    def changes(self, factor: float, seed: int) -> dict[str, Any]:
        """Return the changes of the recipe for this network: {key: value}."""
        recipe = load_recipe(RECIPE)
        return {
            "model": self.trained or self.model,
            "form": self.form,
            "output_init": self.output_init,
            "seed": seed,
            "learning_rate": factor * recipe.learning_rate,
            "muon_learning_rate": factor * recipe.muon_learning_rate,
        }


PEERS = (
    Peer("SPAN", 126, seeds=(2026, 2027)),
    Peer("EFDN", 0, form="plain"),
    Peer("NanoSR", 7, seeds=(2026, 2027)),
    Peer("NanoSR_plain", 7, PLAIN_NANOSR, form="plain"),
    Peer("PlainUSR", 124),
    Peer("PAN", 120, form="plain", output_init=0.0),
)


def read_sweep(folder: Path) -> Losses:
    """Return {name: {factor: loss}}, empty without a sweep."""
    file = folder / SWEEP_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def run_folder(out: Path, peer: Peer, seed: int) -> Path:
    """Return the folder of a run of the comparison."""
    return out / (peer.name if seed == peer.seeds[0] else f"{peer.name}_seed{seed}")


def run(changes: dict[str, Any], run_dir: Path, args: argparse.Namespace) -> None:
    """Start or resume train.py with a changed recipe. Raise DivergedError if it diverges, HarnessError if it fails."""
    words = [sys.executable, ROOT / "train.py", RECIPE, "--train_dir", args.train_dir, "--run_dir", run_dir, "--resume"]
    words += ["--validation_dir", args.validation_dir] if args.validation_dir else []
    words += ["--time_limit", args.time_limit] if args.time_limit else []
    words += ["--set", *as_settings(changes)]
    status = subprocess.run([*map(str, words)]).returncode
    if status:
        kind = DivergedError if status == DivergedError.status else HarnessError
        raise kind(f"{run_dir}: the training failed; what it said is above")


def as_settings(changes: dict[str, Any]) -> list[str]:
    """Return {key: value} as the KEY=VALUE that `train.py --set` and `load_recipe` take."""
    return [f"{key}={in_toml(value)}" for key, value in changes.items()]


def in_toml(value: Any) -> str:
    """Return a value as one line of TOML, which equals JSON except for tables."""
    value = msgspec.to_builtins(value)
    if not isinstance(value, dict):
        return json.dumps(value)
    return f"{{ {', '.join(f'{key} = {in_toml(item)}' for key, item in value.items())} }}"
