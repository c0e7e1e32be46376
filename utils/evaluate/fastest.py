"""`--backend auto`: which form of a model is fastest here, found by timing them, never by the processor's name."""

import json
import math
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import HarnessError
from utils.evaluate.evaluation import forward
from utils.evaluate.runner import Runner
from utils.files import write_json
from utils.measure.environment import describe_environment, machine_line
from utils.measure.runtime import timed_forward
from utils.zoo.registry import load_model, sources_sha256, variants_of

FASTEST_FILE = "fastest.json"  # in the results folder
ROUNDS, WARMUP, COUNTED = 2, 3, 2  # the forms take turns; passes of a turn that do not count, and that do
SLOW_MS = 100.0  # where a pass takes longer, it is on a CPU, and one is enough to warm up
KEEPS = {  # the number types that keep at least a precision
    "float32": {"float32"},
    "float16": {"float32", "float16"},
    "bfloat16": {"float32", "bfloat16", "float16"},
}


@dataclass(frozen=True)
class Choice:
    """The fastest form's entry; the median time of a pass of every form by its name [ms]; why others are not there."""

    entry: object
    times_ms: dict
    lacking: dict

    def __str__(self):
        plain, *_ = self.times_ms.values()
        ratios = ", ".join(f"{name} {plain / ms:.2f}" for name, ms in self.times_ms.items())
        names_by_reason = {}
        for name, reason in self.lacking.items():
            names_by_reason.setdefault(reason, []).append(name)
        lacking = "".join(f"; not here: {', '.join(names)} ({reason})" for reason, names in names_by_reason.items())
        return f"--backend auto takes {self.entry.name}; speed as a ratio to the plain form: {ratios}{lacking}"


def fastest_form(entry, registry, precision, lr, device, cache):
    """Return the Choice among `entry` and its variants in `registry` that keep `precision`, None for float32.

    `lr` is 1 x 3 x H x W float32 as the data have it; times are kept in the file `cache` per machine and class of size,
    a power of two of pixels. Raises HarnessError if `entry` itself cannot be built.
    """
    keeps = KEEPS[precision or "float32"]
    forms = {form.name: form for form, way in variants_of(entry, registry) if way["precision"] in keeps}
    environment = describe_environment(device)
    machine = f"{machine_line(environment)}, torch {torch.__version__}"
    pixels = 2 ** round(math.log2(lr.shape[2] * lr.shape[3]))
    sources = ", ".join(f"{name} {sources_sha256(form)[:12]}" for name, form in forms.items())
    key = f"{machine}; about {pixels} LR pixels; {sources}"
    known = _read(cache)
    if key not in known:
        times_ms, lacking = _time(forms, lr, device)
        known[key] = {"times_ms": times_ms, "lacking": lacking}
        write_json(cache, known)
    times_ms = known[key]["times_ms"]
    return Choice(forms[min(times_ms, key=times_ms.get)], times_ms, known[key]["lacking"])


def _read(cache):
    """The times kept in a file; one that cannot be read is no loss."""
    try:
        return json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _time(forms, lr, device):
    """Return {name: median ms} of the forms that can be built and run, and {name: reason} of the others."""
    models, lacking, lr = {}, {}, lr.to(device)
    for name, form in forms.items():
        try:
            runner = Runner(load_model(form, device), device)
            forward(runner, lr)  # one may be for another device, or miss its compiler only now
            models[name] = runner.model
        except HarnessError as error:
            if not form.variant:
                raise
            lacking[name] = str(error)
    times = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            times[name] += _turn(model, lr)
    return {name: float(np.median(values)) for name, values in times.items()}, lacking


def _turn(model, lr):
    """The times of a form's counted passes [ms], after those that find or make its memory, or its CUDA graph."""
    slow = timed_forward(model, lr)[1] > SLOW_MS
    for _ in range(0 if slow else WARMUP - 1):
        timed_forward(model, lr)
    return [timed_forward(model, lr)[1] for _ in range(COUNTED)]
