"""`--backend auto`: find a model's fastest variant here by timing all of them, never by the processor's name."""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from torch import Tensor, nn

from utils.errors import HarnessError
from utils.evaluate.evaluation import forward
from utils.evaluate.runner import Runner
from utils.files import write_json
from utils.measure.environment import describe_environment, machine_line
from utils.measure.runtime import timed_forward
from utils.zoo.registry import ModelEntry, load_model, sources_sha256, variants_of

FASTEST_FILE = "fastest.json"  # in the results folder
ROUNDS, WARMUP, COUNTED = 2, 3, 2  # turns of each variant; uncounted and counted passes of a turn
SLOW_MS = 100.0  # a slower pass is on a CPU, where one pass is enough to warm up
KEEPS = {  # for each precision, the number types that are at least as precise
    "float32": {"float32"},
    "float16": {"float32", "float16"},
    "bfloat16": {"float32", "bfloat16", "float16"},
}


@dataclass(frozen=True)
class Choice:
    """The fastest variant's entry, each variant's median time by its name [ms], and why others are missing."""

    entry: ModelEntry
    times_ms: dict[str, float]
    lacking: dict[str, str]

    def __str__(self) -> str:
        plain, *_ = self.times_ms.values()
        ratios = ", ".join(f"{name} {plain / ms:.2f}" for name, ms in self.times_ms.items())
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in self.lacking.items():
            names_by_reason.setdefault(reason, []).append(name)
        lacking = "".join(f"; not here: {', '.join(names)} ({reason})" for reason, names in names_by_reason.items())
        return f"--backend auto takes {self.entry.name}; speed as a ratio to the plain form: {ratios}{lacking}"


def fastest_variant(
    entry: ModelEntry,
    registry: list[ModelEntry],
    precision: str | None,
    lr: Tensor,
    device: torch.device,
    cache: Path,
) -> Choice:
    """Return the Choice among `entry` and its variants in `registry` that keep `precision`; None means float32.

    `lr` is a 1 x 3 x H x W float32 image of the data. Times are cached in the file `cache` per machine and image size,
    rounded to a power of two of pixels. Raise HarnessError if `entry` itself cannot be built.
    """
    keeps = KEEPS[precision or "float32"]
    if entry.precision not in keeps:
        raise HarnessError(f"--backend auto: {entry.name} computes in {entry.precision}; name its plain model")
    variants = {variant.name: variant for variant in variants_of(entry, registry) if variant.precision in keeps}
    machine = f"{machine_line(describe_environment(device))}, torch {torch.__version__}"
    pixels = 2 ** round(math.log2(lr.shape[2] * lr.shape[3]))
    sources = ", ".join(f"{name} {sources_sha256(variant)[:12]}" for name, variant in variants.items())
    key = f"{machine}; about {pixels} LR pixels; {sources}"
    known = _read(cache)
    if key not in known:
        known[key] = _time(variants, lr, device)
        write_json(cache, msgspec.to_builtins(known))
    times_ms = known[key].times_ms
    return Choice(variants[min(times_ms, key=lambda name: times_ms[name])], times_ms, known[key].lacking)


class Times(Struct):
    """{name: median ms} of the variants that can be built and run, and {name: reason} of the others."""

    times_ms: dict[str, float]
    lacking: dict[str, str]


def _read(cache: Path) -> dict[str, Times]:
    """Return the times cached in a file. An unreadable file counts as empty."""
    try:
        return msgspec.json.decode(cache.read_bytes(), type=dict[str, Times])
    except (OSError, msgspec.DecodeError):
        return {}


def _time(variants: dict[str, ModelEntry], lr: Tensor, device: torch.device) -> Times:
    models: dict[str, nn.Module] = {}
    lacking: dict[str, str] = {}
    lr = lr.to(device)
    for name, variant in variants.items():
        try:
            runner = Runner(load_model(variant, device), device)
            forward(runner, lr)  # fails only now if it is for another device or lacks its compiler
            models[name] = runner.model
        except HarnessError as error:
            if not variant.variant:
                raise
            lacking[name] = str(error)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            times[name] += _turn(model, lr)
    return Times({name: float(np.median(values)) for name, values in times.items()}, lacking)


def _turn(model: nn.Module, lr: Tensor) -> list[float]:
    """Return the times of the counted passes [ms], after warm-up passes that set up memory or a CUDA graph."""
    slow = timed_forward(model, lr).runtime_ms > SLOW_MS
    for _ in range(0 if slow else WARMUP - 1):
        timed_forward(model, lr)
    return [timed_forward(model, lr).runtime_ms for _ in range(COUNTED)]
