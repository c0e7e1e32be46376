"""Measure speed and memory of variants of a training step: python -m benchmarks.training [--batch 16] [--device auto]

Method. Each variant trains NanoSR from the same initial weights on one batch that lies in memory before the clock
starts. A step is what `train.py` does: forward, backward, gradient norm, AdamW, running average. The variants take
turns, one step each per round, so that a busy machine slows all of them; the first rounds warm up and do not count.
The table shows the median time of a step, its 10th and 90th percentile, and the ratio of the reference's median to it.
The reference is the branches in float32. Peak memory on a GPU is `max_memory_allocated` minus the memory held before;
on a CPU it is the growth of the resident memory of a separate process over three steps. Feeding is timed separately,
without a step, over batches of the size that training uses.
"""

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from kernels.convolution import fastest
from training.data.feed import THREADS, Feed, MappedFeed, PatchSampler, ResidentFeed
from training.data.subimages import SubImages
from training.graph import GraphedUpdate
from training.loop import Trainer
from training.prepare import Cut, list_images, prepare
from training.recipe import Recipe, load_recipe
from training.setup import set_up
from utils.data.datasets import challenge_folders
from utils.data.sample import ensure_sample
from utils.errors import exit_on_harness_error
from utils.files import ROOT
from utils.measure.allocator import keep_freed_memory
from utils.measure.environment import choose_device, describe_environment, machine_line
from utils.measure.memory import peak_rss_bytes, reset_peak
from utils.options import add_device, natural, parse, positive
from utils.progress import progress
from utils.zoo.registry import ModelTable

Step = Callable[[Tensor, Tensor], Any]
PLAIN_NANOSR = ModelTable(file="models/team07_NanoSR.py", class_name="NanoSR_inference", arguments=[3, 3])


@dataclass(frozen=True)
class Variant:
    """A way to do a step: the network's form, and with what."""

    form: str
    precision: str
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    kernels: str = "torch"  # "auto": the fastest that works here

    def of(self, recipe: Recipe) -> Recipe:
        """Return the recipe changed to this variant; the plain form trains the plain network directly."""
        ways: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("form", "precision", "channels_last", "compile", "cuda_graph", "kernels")
        }
        changed = replace(recipe, **ways)
        return replace(changed, model=PLAIN_NANOSR) if self.form == "plain" else changed

    def possible(self, device: torch.device) -> bool:
        """Return whether this machine can run it."""
        if device.type == "cuda":
            return self.kernels == "torch"
        return not (self.compile or self.cuda_graph) and (self.kernels == "torch" or fastest() is not None)


REFERENCE = Variant("branches", "float32", channels_last=False)
VARIANTS = (
    REFERENCE,
    Variant("collapsed", "float32", channels_last=False),
    Variant("collapsed", "float32"),
    Variant("branches", "bfloat16"),
    Variant("collapsed", "bfloat16"),
    Variant("collapsed", "bfloat16", kernels="auto"),
    Variant("branches", "bfloat16", cuda_graph=True),
    Variant("collapsed", "bfloat16", cuda_graph=True),
    Variant("collapsed", "bfloat16", compile=True, cuda_graph=True),
    Variant("plain", "bfloat16"),
    Variant("plain", "bfloat16", kernels="auto"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--warmup", type=natural, default=3)
    add_device(parser)
    args = parse(parser)
    device = choose_device(args.device)
    recipe = replace(load_recipe(ROOT / "training" / "recipes" / "nanosr_500k.toml"), batch=args.batch)
    variants = [variant for variant in VARIANTS if variant.possible(device)]
    steps = updates(recipe, variants, device)
    times = time_steps(steps, random_batch(recipe, device), args.warmup, args.rounds)
    environment = describe_environment(device)
    print(
        f"\n{machine_line(environment)}, torch {torch.__version__}, "
        f"{environment.date[:10]}; batch {recipe.batch} of {recipe.hr_patch} x {recipe.hr_patch} HR, "
        f"{args.warmup} warm-up and {args.rounds} timed rounds\n"
    )
    print(
        "| form | precision | layout | compiled | graph | convolutions | ms per step (10-90 %) | steps/s | ratio "
        "| peak [MiB] |"
    )
    print("| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for variant in variants:
        p10, median, p90 = np.percentile(times[variant], [10, 50, 90])
        ratio = np.median(times[REFERENCE]) / median
        layout = "channels_last" if variant.channels_last else "contiguous"
        compiled, graph = ("yes" if used else "no" for used in (variant.compile, variant.cuda_graph))
        convolutions = variant.kernels if variant.kernels == "torch" else fastest()
        print(
            f"| {variant.form} | {variant.precision} | {layout} | {compiled} | {graph} | {convolutions} "
            f"| {median:.1f} ({p10:.1f}-{p90:.1f}) | {1000 / median:.2f} | {ratio:.2f} "
            f"| {peak_mib(recipe, variant, device):.0f} |"
        )
    quickest = min(np.median(values) for values in times.values())
    print("\n| feed | batches/s | ratio to the fastest form's steps/s |\n| --- | ---: | ---: |")
    for name, rate in feed_rates(recipe, device, args.rounds):
        print(f"| {name} | {rate:.1f} | {rate * quickest / 1000:.1f} |")


def random_batch(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a random batch that is smooth enough to train on: on noise, the loss would not stay finite for long."""
    side = recipe.hr_patch // 4
    generator = torch.Generator().manual_seed(0)
    lr = torch.randint(0, 256, (recipe.batch, 3, side, side), dtype=torch.uint8, generator=generator)
    return lr.to(device), lr.repeat_interleave(4, 2).repeat_interleave(4, 3).to(device)


def updates(recipe: Recipe, variants: Sequence[Variant], device: torch.device) -> dict[Variant, Step]:
    """Return a step function per variant."""
    if device.type == "cpu":
        keep_freed_memory()
    steps: dict[Variant, Step] = {}
    for variant in variants:
        trainer = Trainer(set_up(variant.of(recipe), device))
        steps[variant] = GraphedUpdate(trainer) if variant.cuda_graph else trainer.update
    return steps


def time_steps(
    steps: dict[Any, Step], batch: tuple[Tensor, Tensor], warmup: int, rounds: int
) -> dict[Any, list[float]]:
    """Return {name: times [ms]}, one per counted round, of {name: step function}; they take turns."""
    lr, hr = batch
    times: dict[Any, list[float]] = {name: [] for name in steps}
    for number in progress(range(warmup + 1 + rounds), desc="steps", unit="round"):
        for name, step in steps.items():
            synchronize(lr.device)
            start = time.perf_counter()
            step(lr, hr)
            synchronize(lr.device)
            if number > warmup:  # one round more: a CUDA graph is captured in its fourth
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(recipe: Recipe, variant: Variant, device: torch.device) -> float:
    """Return the peak memory [MiB] of a few steps of one variant, beyond the memory held before."""
    if device.type == "cuda":
        return _growth(recipe, variant, device)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_growth, recipe, variant, device).result()


def _growth(recipe: Recipe, variant: Variant, device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    lr, hr = random_batch(recipe, device)
    gc.collect()
    reset_peak(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
    (step,) = updates(recipe, [variant], device).values()
    for _ in range(5 if variant.cuda_graph else 3):
        step(lr, hr)
    return ((torch.cuda.max_memory_allocated(device) if on_gpu else peak_rss_bytes()) - before) / 2**20


def feed_rates(recipe: Recipe, device: torch.device, rounds: int) -> Iterator[tuple[str, float]]:
    """Yield (name, batches/s) for both feeds over the built-in sample's photographs."""
    with tempfile.TemporaryDirectory() as folder:
        sources = list_images([challenge_folders(ensure_sample(), "valid")[0]])
        prepare(sources, {}, Path(folder), Cut(), 100, 1, strict=True)
        subimages = SubImages(folder)
        plan = PatchSampler(subimages.shapes, recipe.seed, recipe.batch, recipe.hr_patch)
        feeds: dict[str, Feed] = {
            "resident": ResidentFeed(subimages, plan, device),
            "mapped, in the training process": MappedFeed(subimages, plan, device, 0),
            f"mapped, {THREADS} threads": MappedFeed(subimages, plan, device, THREADS),
        }
        for name, feed in feeds.items():
            batches = feed.batches(0, 20 * rounds + 1)
            next(batches)  # threads start with the first
            start = time.perf_counter()
            for _ in batches:
                pass
            synchronize(device)
            yield name, 20 * rounds / (time.perf_counter() - start)


if __name__ == "__main__":
    exit_on_harness_error(main)
