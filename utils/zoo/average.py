"""Average the weights of several trainings: python -m utils.zoo.average CKPT CKPT … --out FILE.pth

The mean of networks that went on training from the same weights, each a little differently, is better than each of them
and costs nothing at inference (M. Wortsman et al., *Model soups*, ICML 2022). Trainings that began or have gone far
apart do not share a valley, and their mean is worse. Average training forms, then fuse: fusing multiplies weights.
"""

import argparse
from pathlib import Path

from utils.errors import HarnessError, exit_on_harness_error
from utils.zoo.checkpoints import differences, load_state_dict, save_atomically


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pth")
    args = parser.parse_args()
    if len(args.checkpoints) < 2:
        raise HarnessError(f"{args.checkpoints[0]}: the only one; name two checkpoints or more")
    save_atomically(averaged(args.checkpoints), args.out)
    print(f"{args.out}: mean of {len(args.checkpoints)} checkpoints")


def averaged(paths):
    """Return the mean of state dicts, summed in float64, in the dtypes of the first; what is no float is the first's.

    Raises HarnessError naming a checkpoint whose keys or shapes are not the first's.
    """
    states = [load_state_dict(path) for path in paths]
    first = states[0]
    for path, state in zip(paths, states, strict=True):
        if problems := differences(first, state):
            raise HarnessError(f"{path}: is not of the network that {paths[0]} is of ({problems})")
    return {
        key: sum(state[key].double() for state in states).div(len(states)).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in first.items()
    }


if __name__ == "__main__":
    exit_on_harness_error(main)
