"""Let a network teach: python -m training.data.distill --data data/train --model_id 214 --out data/distilled

Copies a prepared training set, each HR sub-image replaced by what the teacher makes of the LR one: the mean over its
eight orientations, better than the network itself, so that a network can even be its own teacher. What no network could
know of the HR image, JPEG's errors among it, no longer disturbs the student. --share 0.5 takes the mean of both images.
Shards are written one at a time; a run that was stopped goes on where it was.

Sources: G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; the mean over orientations, R. Timofte
et al., *Seven Ways to Improve Example-Based Single Image Super Resolution*, CVPR 2016.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from training.data.subimages import SubImages, read_index, write_index, write_shard
from utils.arguments import one_entry
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.evaluation import restore
from utils.evaluate.runner import Runner
from utils.files import read_json
from utils.measure.environment import choose_device
from utils.options import add_model_file
from utils.progress import progress
from utils.zoo.registry import load_model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="that training.prepare made")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--model_id", type=int, help="the teacher, by its number in the registry")
    add_model_file(parser)
    parser.add_argument("--share", type=float, default=1.0, help="of the teacher's image, the rest is the HR image's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        raise HarnessError(f"--share {args.share}: expected more than 0 and at most 1")
    subimages = SubImages(args.data)
    device = choose_device(args.device)
    teacher = load_model(one_entry(args), device)
    if teacher.missing_weights:
        raise HarnessError(f"{teacher.missing_weights}; name the teacher's by --checkpoint")
    distill(subimages, teacher, device, args.share, args.out)
    print(f"{len(subimages)} sub-images by {teacher.entry.name} in {args.out}")


def distill(subimages, teacher, device, share, out):
    """Write the prepared folder `out`: `subimages` with `share` of their HR from a LoadedModel on `device`.

    Finished shards of an earlier run are kept. Raises HarnessError if they are of another teacher, share or set, and if
    the teacher fails or gives anything but an image of four times the size.
    """
    if out.resolve() == subimages.folder.resolve():
        raise HarnessError(f"{out}: is the set that is read; choose another --out")
    runner = Runner(replace(teacher, model=partial(self_ensemble, teacher.model)), device)
    shards, first = [], 0
    with progress(total=len(subimages), unit="sub-image", desc="teaching") as bar:

        def taught(number):
            bar.update()
            lr, hr = subimages.pair(number)
            return lr, np.rint(share * restore(runner, lr)[0] + (1 - share) * hr).astype(np.uint8)

        for shard in subimages.shards:
            info = read_json(subimages.folder / f"{shard['name']}.json")
            numbers = range(first, first + len(info["shapes"]))
            first = numbers.stop
            lesson = {"by": teacher.sha256, "share": share, "from": shard["sha256"]}
            made_from = {"sources": info["sources"], "taught": lesson}
            shards.append(write_shard(out / shard["name"], made_from, map(taught, numbers)))
            bar.update(first - bar.n)  # of a shard that was there
    write_index(out, read_index(subimages.folder), shards)


@torch.no_grad()
def self_ensemble(model, lr):
    """Return the mean of what a network makes of 1 x 3 x H x W in its eight orientations, each turned back."""
    total = 0
    for turned in (False, True):
        image = lr.transpose(2, 3) if turned else lr
        for flips in ((), (2,), (3,), (2, 3)):
            sr = model(image.flip(flips).contiguous()).flip(flips)
            total = total + (sr.transpose(2, 3) if turned else sr)
    return total / 8


if __name__ == "__main__":
    exit_on_harness_error(main)
