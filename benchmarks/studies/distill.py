"""Distill a network: python -m benchmarks.studies.distill --train_dir data/train --model_id 214 --out data/distilled

Copies a prepared training set and replaces each HR sub-image by the teacher's output for the LR one. The output is the
mean over eight orientations. It is better than the network itself, so a network can even be its own teacher. Details of
the HR image that no network could know, such as JPEG artifacts, no longer disturb the student. --share 0.5 takes the
mean of both images. Shards are written one at a time; an interrupted run resumes where it stopped.

Sources: G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015; the mean over orientations, R. Timofte
et al., *Seven Ways to Improve Example-Based Single Image Super Resolution*, CVPR 2016.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.data.subimages import SubImages, read_index, write_index, write_shard
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.evaluation import restore
from utils.evaluate.runner import Runner
from utils.files import read_json
from utils.measure.environment import choose_device
from utils.options import add_device, add_model, parse
from utils.progress import progress
from utils.request import ModelChoice, one_entry
from utils.zoo.registry import LoadedModel, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_dir", required=True, type=Path, metavar="DIR", help="that training.prepare made")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    add_model(parser)
    parser.add_argument("--share", type=float, default=1.0, help="of the teacher's image, the rest is the HR image's")
    add_device(parser)
    args = parse(parser)
    if not 0 < args.share <= 1:
        raise HarnessError(f"--share {args.share}: expected more than 0 and at most 1")
    subimages = SubImages(args.train_dir)
    device = choose_device(args.device)
    ids = () if args.model_id is None else (args.model_id,)
    choice = ModelChoice(ids, args.model_file, args.checkpoint)
    teacher = load_model(one_entry(choice), device)
    if teacher.weights.missing_weights:
        raise HarnessError(f"{teacher.weights.missing_weights}; name the teacher's by --checkpoint")
    distill(subimages, teacher, device, args.share, args.out)
    print(f"{len(subimages)} sub-images by {teacher.entry.name} in {args.out}")


def distill(subimages: SubImages, teacher: LoadedModel, device: torch.device, share: float, out: Path) -> None:
    """Write the prepared folder `out`: `subimages` with a `share` of the teacher's output in their HR images.

    Finished shards of an earlier run are kept. Raise HarnessError if they are of another teacher, share or set, or if
    the teacher fails or its output is not an image of four times the size.
    """
    if out.resolve() == subimages.folder.resolve():
        raise HarnessError(f"{out}: is the set that is read; choose another --out")
    runner = Runner(replace(teacher, model=SelfEnsemble(teacher.model)), device)
    shards: list[dict[str, Any]] = []
    first = 0
    with progress(total=len(subimages), unit="sub-image", desc="teaching") as bar:

        def taught(number: int) -> tuple[np.ndarray, np.ndarray]:
            bar.update()
            lr, hr = subimages.pair(number)
            return lr, np.rint(share * restore(runner, lr).sr + (1 - share) * hr).astype(np.uint8)

        for shard in subimages.shards:
            info = read_json(subimages.folder / f"{shard['name']}.json") or {}
            numbers = range(first, first + len(info["shapes"]))
            first = numbers.stop
            lesson = {"by": teacher.weights.sha256, "share": share, "from": shard["sha256"]}
            made_from = {"sources": info["sources"], "taught": lesson}
            shards.append(write_shard(out / shard["name"], made_from, map(taught, numbers)))
            bar.update(first - bar.n)  # of a shard that was there
    write_index(out, read_index(subimages.folder), shards)


class SelfEnsemble(nn.Module):
    """The mean of a network's outputs for the eight orientations of 1 x 3 x H x W, each turned back."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        outputs = []
        for turned in (False, True):
            image = lr.transpose(2, 3) if turned else lr
            for flips in ((), (2,), (3,), (2, 3)):
                sr = self.model(image.flip(flips).contiguous()).flip(flips)
                outputs.append(sr.transpose(2, 3) if turned else sr)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total / 8


if __name__ == "__main__":
    exit_on_harness_error(main)
