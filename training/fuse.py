"""Collapse a training form's weights to the plain network's: python -m training.fuse CKPT --out_file FILE.pth

CKPT is a training form's weights file (such as a run's `nanosr_train.pth`) or a run's `state.pt`. The model is given by
--model_id, or else by the state or the recipe in the run's folder, or else by the registry entry whose weights have
this file name. Prints the largest difference between both forms on a random, smooth image, in float32, as a share of
the output's largest value.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from training.forms import build, fused, load_weights, trained_model
from training.loop import STATE_FILE, read_state
from training.recipe import load_recipe, recipe_from
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import RECIPE_FILE
from utils.options import command_line, parse
from utils.zoo.checkpoints import save_atomically
from utils.zoo.registry import ModelTable, read_registry


def main() -> None:
    parser = command_line(
        "-m training.fuse",
        "Collapse a training form's weights to the plain network's, and print how far both differ.",
        "runs/cpu_sample/nanosr_train.pth --out_file nanosr.pth",
        "runs/cpu_sample/state.pt --out_file nanosr.pth",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="weights of a training form, or a run's state.pt")
    parser.add_argument("--out_file", type=Path, required=True, metavar="FILE.pth", help="file of the fused weights")
    parser.add_argument("--model_id", type=int, metavar="N", help="the plain network's id in the registry")
    args = parse(parser, {"--out": "--out_file"})
    trained = trained_model(model_of(args.checkpoint) if args.model_id is None else args.model_id)
    if not trained.train_file:
        raise HarnessError(f"{args.checkpoint}: {trained.entry.name} has no training form; there is nothing to fuse")
    state = args.checkpoint.with_name(STATE_FILE)
    if not args.checkpoint.is_file() and state.is_file():
        raise HarnessError(f"{args.checkpoint}: is written when the run ends; fuse its checkpoint so far, {state}")
    model = build(trained).eval()
    load_weights(model, args.checkpoint)
    plain = fused(model).eval()
    save_atomically(plain.state_dict(), args.out_file)
    difference = largest_difference(model, plain, trained.entry.data_range)
    print(f"{args.out_file}: fused, largest difference {difference:.1e} of the output's largest value")


def model_of(checkpoint: Path) -> int | ModelTable:
    """Return a checkpoint's model, as a recipe's `model`. Raise HarnessError if it cannot be determined."""
    if checkpoint.name == STATE_FILE:
        return recipe_from(read_state(checkpoint, torch.device("cpu"))["recipe"], checkpoint).model
    recipe = checkpoint.with_name(RECIPE_FILE)
    if recipe.is_file():
        return load_recipe(recipe).model
    registry = read_registry()
    for entry in registry:
        if Path(entry.checkpoint).name == checkpoint.name:
            plain = next((other for other in registry if other.training == entry.id), entry)
            return plain.id
    raise HarnessError(f"{checkpoint}: the registry has no weights of this name; say whose they are by --model_id")


@torch.no_grad()
def largest_difference(model: nn.Module, plain: nn.Module, data_range: float) -> float:
    """Return the largest difference of two networks' outputs on a random 1 x 3 x 61 x 47 image.

    It is relative to the largest output value of `model`. The image is smooth, since trained networks may respond to
    white noise with unbounded values, or with nothing.
    """
    grid = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    lr = F.interpolate(grid, (61, 47), mode="bilinear") * data_range
    expected = model(lr)
    return ((plain(lr) - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    exit_on_harness_error(main)
