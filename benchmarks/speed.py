"""Measure the speed of evaluation and network, as ratios: python -m benchmarks.speed [--data_dir D] [--images 5]

Method. Everything is measured in one run on one machine, as a ratio to a reference of the same run.

1. Evaluation: the wall time of reading, restoring, PSNR, SSIM and writing PNGs over the data set's first images, once
   per variant after one image that does not count. The reference is `benchmarks/reference.py`, the protocol as the
   organizers run it; it may take fewer of the images. Differences are to the reference, on the images that it took.
   "Around the network" is that time minus the forward pass: on a CPU, everything else; on a GPU, the work that did not
   overlap with the forward pass.
2. Network: only the forward pass, on an LR image of each of the data set's most common sizes; the output stays on the
   device. The variants take turns, a block of passes each per round, so that a busy machine slows all of them. The
   first pass of a block is not counted: it finds memory as another variant left it, unlike in an evaluation (on a CPU,
   counting it would make the reference up to a fifth faster). The first round is not counted either. The table shows
   the median and the 10th to 90th percentile; the reference is eager float32 in contiguous memory. PSNR differences are
   means over the data set's first images. The share of the ceiling is the network's multiply-accumulates per second
   over those of a large matrix product of the same number type, the fastest of two per round. It counts the operations
   of plain convolution; Winograd's needs fewer and can exceed the ceiling.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.reference import reference_evaluation
from utils.data.datasets import Dataset, open_dataset
from utils.data.images import to_tensor
from utils.data.sample import default_data_dir
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.evaluation import default_workers, evaluate
from utils.evaluate.runner import Runner
from utils.measure.complexity import measure_complexity
from utils.measure.environment import choose_device, describe_environment, machine_line
from utils.measure.runtime import timed_forward
from utils.options import add_device, natural, parse, positive
from utils.progress import progress
from utils.record import mean
from utils.zoo.registry import LoadedModel, find_entry, load_model, read_registry, with_checkpoint

REFERENCE = 7
BLOCK = 3  # counted passes of a variant in a row
VARIANTS = {  # registry id, number type of the arithmetic
    "cpu": {
        REFERENCE: torch.float32,
        207: torch.float32,
        208: torch.bfloat16,
        210: torch.float32,
        214: torch.float32,
        211: torch.bfloat16,
        213: torch.bfloat16,
    },
    "cuda": {
        REFERENCE: torch.float32,
        207: torch.float32,
        215: torch.float32,
        208: torch.bfloat16,
        216: torch.bfloat16,
        209: torch.float16,
        212: torch.float16,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="default: as for eval.py; DIV2K-size photographs say most")
    parser.add_argument("--images", type=positive, default=5)
    parser.add_argument("--reference_images", type=positive, help="how many of them the reference takes (default: all)")
    parser.add_argument("--sizes", type=natural, default=2, help="how many of the most common LR sizes to time")
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--checkpoint", type=Path, help="NanoSR weights instead of the registry's")
    add_device(parser)
    args = parse(parser)
    device = choose_device(args.device)
    dataset = open_dataset(args.data_dir or default_data_dir())
    dataset = replace(dataset, pairs=dataset.pairs[: args.images])
    types = VARIANTS[device.type]
    models = load_models(types, device, args.checkpoint)
    environment = describe_environment(device)
    print(
        f"{machine_line(environment)}, torch {torch.__version__}, "
        f"{environment.date[:10]}; {len(dataset.pairs)} images of {dataset.label}\n"
    )
    quality = evaluation_table(models, dataset, device, args.reference_images)
    ceilings = dict.fromkeys(types.values(), 0.0)
    for lr in common_sizes(dataset, args.sizes):
        network_table(models, types, quality, ceilings, to_tensor(lr).to(device), args.rounds)
    for dtype, rate in ceilings.items() if args.sizes else ():
        print(f"\nCeiling, {dtype}: {2 * rate / 1e6:.0f} GFLOP/s, two for each multiply-accumulate")


def load_models(ids: Iterable[int], device: torch.device, checkpoint: Path | None) -> dict[int, LoadedModel]:
    """Return the models by their ids; one that cannot be built here is named and left out."""
    models, registry = {}, read_registry()
    for id_ in ids:
        try:
            models[id_] = load_model(with_checkpoint(find_entry(id_, registry), checkpoint), device)
        except HarnessError as error:
            if id_ == REFERENCE:
                raise
            print(f"not measured: {error}")
    if lacking := [find_entry(id_, registry).name for id_ in VARIANTS["cuda"] if id_ not in ids]:
        print(f"not measured: {', '.join(lacking)} (no GPU)")
    return models


def evaluation_table(
    models: dict[int, LoadedModel], dataset: Dataset, device: torch.device, reference_images: int | None = None
) -> dict[int, float]:
    """Print the first table; return the mean PSNR [dB] of every model by its id."""
    print("| evaluation | s per image | ratio | around the network [s] | PSNR difference [dB] | SSIM difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    paths = [(pair.lr, pair.hr) for pair in dataset.pairs if pair.lr and pair.hr]
    with tempfile.TemporaryDirectory() as folder:
        reference_evaluation(models[REFERENCE].model, paths[:1], folder)
        start = time.perf_counter()
        results = reference_evaluation(models[REFERENCE].model, paths[:reference_images], folder)
        reference_s = (time.perf_counter() - start) / len(results)
        psnr, ssim = np.mean(results, axis=0)
        print(f"| reference | {reference_s:.3f} | 1.00 | | | |", flush=True)
        quality = {}
        for id_, loaded in models.items():
            runner = Runner(loaded, device)
            list(evaluate(runner, replace(dataset, pairs=dataset.pairs[:1]), True, Path(folder)))
            start = time.perf_counter()
            images = list(evaluate(runner, dataset, True, Path(folder), default_workers(device)))
            seconds = (time.perf_counter() - start) / len(paths)
            around = seconds - float(np.mean([image.runtime_ms for image in images])) / 1000
            quality[id_] = mean(image.psnr for image in images) or 0.0
            same = images[: len(results)]
            means = mean(image.psnr for image in same) or 0.0, mean(image.ssim for image in same) or 0.0
            differences = means[0] - psnr, means[1] - ssim
            print(
                f"| {loaded.entry.name} | {seconds:.3f} | {reference_s / seconds:.2f} | {around:.3f} "
                f"| {differences[0]:+.4f} | {differences[1]:+.6f} |",
                flush=True,
            )
    return quality


def common_sizes(dataset: Dataset, count: int) -> list[np.ndarray]:
    """Return an LR image of each of the `count` most common sizes."""
    by_size = defaultdict(list)
    for pair in dataset.pairs:
        by_size[pair.read_lr().shape].append(pair)
    common = sorted(by_size.values(), key=len, reverse=True)[:count]
    return [pairs[0].read_lr() for pairs in common]


def network_table(
    models: dict[int, LoadedModel],
    types: dict[int, torch.dtype],
    quality: dict[int, float],
    ceilings: dict[torch.dtype, float],
    lr: Tensor,
    rounds: int,
) -> None:
    """Print the second table for one size of LR image; raise the `ceilings` that are found higher meanwhile."""
    times: dict[int, list[float]] = {id_: [] for id_ in models}
    for number in progress(range(1 + rounds), desc="network", unit="round"):
        for dtype, rate in ceilings.items():
            ceilings[dtype] = max(rate, matrix_macs_per_ms(dtype, lr.device))
        for id_, loaded in models.items():
            block = [timed_forward(loaded.model, lr).runtime_ms for _ in range(1 + BLOCK)]
            if number:
                times[id_] += block[1:]
    counts = measure_complexity(models[REFERENCE].model)
    macs = counts.flops / 256**2 * lr.shape[2] * lr.shape[3]
    print(
        f"\n| network on {lr.shape[3]} x {lr.shape[2]} | ms (10-90 %) | ratio | PSNR difference [dB] | of the ceiling |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for id_, loaded in models.items():
        p10, median, p90 = np.percentile(times[id_], [10, 50, 90])
        share = macs / median / ceilings[types[id_]]
        print(
            f"| {loaded.entry.name} | {median:.1f} ({p10:.1f}-{p90:.1f}) | {np.median(times[REFERENCE]) / median:.2f} "
            f"| {quality[id_] - quality[REFERENCE]:+.4f} | {share:.0%} |"
        )


def matrix_macs_per_ms(dtype: torch.dtype, device: torch.device, repeats: int = 2) -> float:
    """Return the multiply-accumulates per ms of the fastest of a few square matrix products."""
    size = 8192 if device.type == "cuda" else 3072  # smaller products are too short to time on a GPU
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    with torch.no_grad():
        product.weight.copy_(b)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # a ceiling of what convolutions may use
    try:
        timed_forward(product, a)
        return size**3 / min(timed_forward(product, a).runtime_ms for _ in range(repeats))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


if __name__ == "__main__":
    exit_on_harness_error(main)
