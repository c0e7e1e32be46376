"""Collapse a training-form checkpoint to the fused one: python -m training.fuse CKPT --out FILE.pth

CKPT is a training-form weights file (such as `nanosr_train.pth` of a run) or a run's `state.pt`. Prints the largest
difference between both forms on a random image, in float32, as a share of the output's largest value.
"""

import argparse
from pathlib import Path

import torch

from models.nanosr_train import NanoSR_train
from utils.errors import exit_on_harness_error
from utils.zoo.checkpoints import load_state_dict, load_strictly, save_atomically


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pth")
    args = parser.parse_args()
    model = NanoSR_train(form="branches").eval()
    load_strictly(model, load_state_dict(args.checkpoint), args.checkpoint)
    fused = model.fuse()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(fused.state_dict(), args.out)
    print(f"{args.out}: fused, largest difference {largest_difference(model, fused):.1e} of the output's largest value")


@torch.no_grad()
def largest_difference(model, fused):
    """Largest absolute difference of two networks' outputs on one random 1 x 3 x 61 x 47 image, relative."""
    lr = torch.rand(1, 3, 61, 47, generator=torch.Generator().manual_seed(0))
    expected = model(lr)
    return ((fused(lr) - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    exit_on_harness_error(main)
