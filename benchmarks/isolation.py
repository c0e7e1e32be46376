"""Measure the cost of isolation: python -m benchmarks.isolation [--data_dir D …] [--model_id 7] [--rounds 5]

Method. One model runs in this process and in a worker process, in turn, over the same data. A first round of both
measurements is not counted.

1. Forward: the protocol's runtime of every image, timed by the process that ran it and, for the worker, also by the
   host; the median over rounds of the mean over images. The bits of every output are compared.
2. Evaluation: wall time of reading, restoring, PSNR, SSIM and writing PNGs over the data, per image; the median over
   rounds. Starting the worker process and loading the model are timed separately.
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from utils.data.datasets import Dataset, open_dataset
from utils.data.images import to_tensor
from utils.data.sample import ensure_sample
from utils.errors import exit_on_harness_error
from utils.evaluate.evaluation import evaluate
from utils.evaluate.runner import ModelRunner, Runner
from utils.isolation.host import IsolatedRunner
from utils.measure.environment import choose_device, describe_environment, machine_line
from utils.options import SANDBOX_MODES, add_device, parse, positive
from utils.zoo.registry import find_entry, load_model, read_registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, nargs="+", help="default: the sample")
    parser.add_argument("--model_id", type=int, default=7)
    parser.add_argument("--rounds", type=positive, default=5)
    add_device(parser)
    parser.add_argument("--sandbox", default="auto", choices=SANDBOX_MODES)
    args = parse(parser)
    device = choose_device(args.device)
    entry = find_entry(args.model_id, read_registry())
    environment = describe_environment(device)
    print(f"{machine_line(environment)}, {environment.date[:10]}")
    with tempfile.TemporaryDirectory() as folder:
        here = Runner(load_model(entry, device), device)
        start = time.perf_counter()
        with IsolatedRunner(entry, device, Path(folder) / "log", sandbox=args.sandbox) as apart:
            ready_s = time.perf_counter() - start
            print(f"{entry.name}; {apart.sandbox.line}; the worker was ready after {ready_s:.1f} s\n")
            print("| data | | here | worker | ratio | host's clock |\n| --- | --- | ---: | ---: | ---: | ---: |")
            for data in args.data_dir or [ensure_sample()]:
                compare(open_dataset(data), here, apart, args.rounds, Path(folder))


def compare(dataset: Dataset, here: Runner, apart: IsolatedRunner, rounds: int, folder: Path) -> None:
    """Print the two rows of one data set."""
    forward: dict[str, list[float]] = {"here": [], "apart": []}
    whole: dict[str, list[float]] = {"here": [], "apart": []}
    host_ms: list[float] = []
    runners: dict[str, ModelRunner] = {"here": here, "apart": apart}
    images = [to_tensor(pair.read_lr(), here.entry.data_range) for pair in dataset.pairs]
    different, threads = 0, {"here": here.threads, "apart": torch.get_num_threads()}  # the host's, beside a worker
    for number in range(1 + rounds):
        digests: dict[str, list[bytes]] = {}
        for name, runner in runners.items():
            torch.set_num_threads(threads[name])
            before = len(apart.timings)
            times_ms = []
            digests[name] = []
            for lr in images:  # no output is kept: memory that it holds would move the time of the next pass
                output, runtime_ms, _ = runner.forward(lr)
                times_ms.append(runtime_ms)
                digests[name].append(hashlib.sha256(output.cpu().numpy().data).digest())
            if number:
                forward[name].append(float(np.mean(times_ms)))
                if runner is apart:
                    host_ms.append(float(np.mean([timing.host_ms for timing in apart.timings[before:]])))
        different += sum(one != other for one, other in zip(*digests.values(), strict=True))
        for name, runner in runners.items():
            torch.set_num_threads(threads[name])
            start = time.perf_counter()
            list(evaluate(runner, dataset, with_ssim=True, save_dir=folder / "images"))
            if number:
                whole[name].append((time.perf_counter() - start) / len(images))
    ms, s = ({name: float(np.median(values)) for name, values in one.items()} for one in (forward, whole))
    print(
        f"| {dataset.label} | forward [ms] | {ms['here']:.1f} | {ms['apart']:.1f} | {ms['apart'] / ms['here']:.3f} "
        f"| {np.median(host_ms):.1f} |\n"
        f"| {'same bits' if not different else f'{different} OUTPUTS DIFFER'} | evaluation [s per image] "
        f"| {s['here']:.3f} | {s['apart']:.3f} | {s['apart'] / s['here']:.3f} | |",
        flush=True,
    )


if __name__ == "__main__":
    exit_on_harness_error(main)
