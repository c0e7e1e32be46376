"""Average the weights of several trainings: python -m utils.zoo.average CKPT CKPT … --out_file FILE.pth

Continue training from the same weights several times, each time a little differently. The mean of these networks is
better than each of them and costs nothing at inference (M. Wortsman et al., *Model soups*, ICML 2022). Networks that
started or drifted far apart do not share a valley, and their mean is worse. Average training forms, then fuse: fusing
multiplies weights.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import HarnessError, exit_on_harness_error
from utils.options import command_line, parse
from utils.zoo.checkpoints import differences, load_state_dict, save_atomically


def main() -> None:
    parser = command_line(
        "-m utils.zoo.average",
        "Average the weights of several trainings that began with the same weights.",
        "runs/a/nanosr_train.pth runs/b/nanosr_train.pth --out_file nanosr_train.pth",
        "runs/*/team42_Net.pth --out_file team42_Net.pth",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="two checkpoints or more")
    parser.add_argument("--out_file", type=Path, required=True, metavar="FILE.pth", help="file of the mean")
    args = parse(parser, {"--out": "--out_file"})
    if len(args.checkpoints) < 2:
        raise HarnessError(f"{args.checkpoints[0]}: the only one; name two checkpoints or more")
    save_atomically(averaged(args.checkpoints), args.out_file)
    print(f"{args.out_file}: mean of {len(args.checkpoints)} checkpoints")


def averaged(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of state dicts, computed in float64, in the first one's dtypes. Only floats are averaged.

    Raise HarnessError naming a checkpoint whose keys or shapes differ from the first one's.
    """
    states = [load_state_dict(path) for path in paths]
    first = states[0]
    for path, state in zip(paths, states, strict=True):
        if problems := differences(first, state):
            raise HarnessError(f"{path}: is not of the network that {paths[0]} is of ({problems})")
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in first.items()
    }


if __name__ == "__main__":
    exit_on_harness_error(main)
