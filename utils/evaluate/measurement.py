"""Measure one model completely: quality, runtime in both forms, memory and complexity, as one results record."""

import math
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import msgspec
import numpy as np
import psutil
import torch

from utils.data.datasets import Dataset
from utils.errors import ForeignError, HarnessError, in_one_line
from utils.evaluate.distributed import World, interleave
from utils.evaluate.evaluation import default_workers, evaluate, forward, largest_lr, time_dataset
from utils.evaluate.fresh import fresh_inputs
from utils.evaluate.runner import ModelRunner
from utils.measure.complexity import INPUT_SHAPE
from utils.measure.environment import describe_environment
from utils.measure.memory import memory_method
from utils.measure.runtime import CLOCKS, measure_steady_runtime
from utils.measure.tiles import OVERLAP
from utils.measure.waiting import CoreUse, core_use
from utils.progress import time_words
from utils.record import (
    Complexity,
    Counts,
    DatasetInfo,
    Images,
    Isolation,
    Memory,
    ModelInfo,
    Record,
    Runtime,
    Status,
    Tiles,
    WeightsInfo,
)
from utils.zoo.registry import ModelEntry, sources_sha256

ALONE = World()
# Parts of the environment that must not change during a measurement.
MACHINE = ("device", "gpu", "cpu", "threads", "libraries", "isolation")


@dataclass(frozen=True)
class MeasurementPlan:
    """The extent of a measurement: timed `runs` over the data set, and the steady runtime's `warmup` and `repeats`.

    `workers` threads read, score and write beside the network; None means `default_workers`. With `luma`, PSNR and SSIM
    are also measured on luma.
    """

    runs: int = 5
    warmup: int = 3
    repeats: int = 10
    workers: int | None = None
    luma: bool = False

    def passes(self, images: int) -> int:
        """Return the number of forward passes of a measurement over `images` images."""
        return self.runs * images + self.warmup + self.repeats

    def workers_on(self, device: torch.device) -> int:
        """Return the number of threads that read, score and write on a device."""
        return default_workers(device) if self.workers is None else self.workers

    def is_done_by(self, record: Record) -> bool:
        """Return whether a complete record holds exactly what this plan asks for."""
        steady = record.runtime.steady
        as_planned = steady is None or (steady.warmup, steady.repeats) == (self.warmup, self.repeats)
        # Tiles have no steady time.
        return len(record.runtime.runs) == self.runs and as_planned and self.has_metrics_of(record)

    def has_metrics_of(self, record: Record) -> bool:
        """Return whether a record's images were scored by the metrics of this plan."""
        images, scored = record.images, len(record.runtime.runs[0]) if record.runtime.runs else 0
        return all(
            (on_luma is not None) == (self.luma and on_rgb is not None)
            for on_rgb, on_luma in zip_longest(images.psnr[:scored], images.luma_psnr[:scored])
        )


class PostponedError(Exception):
    """A measurement would take about `seconds`, longer than the other models should wait."""

    def __init__(self, seconds: float):
        takes = f"it takes about {time_words(seconds)}" if seconds < math.inf else "a pass alone takes minutes"
        super().__init__(f"postponed until the others are measured; {takes}")
        self.seconds = seconds


def measure(
    runner: ModelRunner,
    dataset: Dataset,
    plan: MeasurementPlan,
    save_dir: Path | None = None,
    on_pass: Callable[[], object] = lambda: None,
    on_progress: Callable[[Record], None] = lambda record: None,
    world: World = ALONE,
    earlier: Record | None = None,
    patience_s: float | None = None,
) -> Record:
    """Measure a model and return its record.

    If the first pass shows that the measurement will take longer than `patience_s`, count the static figures and raise
    PostponedError.

    Call `on_pass()` after each forward pass, and `on_progress(record)` with the partial record after each image of each
    run and at the end. If anything stops the measurement, mark the record as stopped with the reason and pass it to
    `on_progress` before raising the exception again. `earlier` is such a record. If it was measured under the same
    circumstances, continue it where it stopped.

    In a `world` of several processes, each process measures its part of the images. The first process's record ends up
    with all of them. The records of the other processes stay incomplete and are only returned.
    """
    record = start_record(runner.entry, dataset, plan, runner.device, runner.isolation, runner.weights)
    record.repository, record.environment.threads = runner.repository, runner.threads
    record.runtime.processes = world.size
    if world.size == 1 and earlier and plan.has_metrics_of(earlier) and _can_go_on(earlier, record, save_dir):
        _go_on(record, earlier, plan, on_pass)
    runner.reset_peak()
    at_first = own_core_use()

    def on_first_pass(runtime_ms: float) -> None:
        seconds = plan.passes(len(dataset.pairs)) * runtime_ms / 1000
        if patience_s is not None and seconds > patience_s:
            record.complexity = _counted(runner, dataset, record)
            raise PostponedError(seconds)

    try:
        _run_over_images(runner, world.part_of(dataset), plan, save_dir, record, on_pass, on_progress, on_first_pass)
        parts = world.gather(record)
        if parts is None:
            return record
        _merge(record, parts)
        if runner.device.type == "cpu":
            lr = largest_lr(dataset, record.images.lr_pixels)
            record.memory.peak_mib = runner.cpu_peak_mib((1, 3, *lr.shape[:2]))
        _measure_steady(runner, dataset, plan, record)
        if any(record.images.tile):
            record.tiles = Tiles(overlap=OVERLAP, reach=runner.reach())
        for _ in range(plan.warmup + plan.repeats):
            on_pass()
        if world.size == 1 and runner.isolation == Isolation.NONE and runner.device.type == "cpu":
            others = own_core_use().others_since(at_first)
            record.runtime.others_cores = max(others, record.runtime.others_cores or 0.0)
        record.complexity = _counted(runner, dataset, record)
        if world.size == 1:
            record.audit = runner.audit(record, dataset)
        record.status = Status.COMPLETE
    except (HarnessError, ForeignError, PostponedError) as error:
        record.status, record.reason = Status.STOPPED, str(error)
        raise
    except BaseException:
        record.status, record.reason = Status.STOPPED, "interrupted"
        raise
    finally:
        on_progress(record)
    return record


def own_core_use() -> CoreUse:
    """Return the CoreUse so far. Its own processes are this one and all that it has started."""
    ended_s = sum(os.times()[2:4])
    return core_use(psutil.Process().children(recursive=True), ended_s)


def start_record(
    entry: ModelEntry,
    dataset: Dataset,
    plan: MeasurementPlan,
    device: torch.device,
    isolation: Isolation,
    weights: WeightsInfo | None = None,
) -> Record:
    """Return a model's record before anything is measured. Without `weights`, the model has not been loaded."""
    weights = weights or WeightsInfo(sha256=None, provenance=entry.provenance)
    environment = describe_environment(device)
    environment.isolation = isolation
    return Record(
        status=Status.RUNNING,
        model=ModelInfo(
            id=entry.id,
            name=entry.name,
            origin=entry.origin,
            slug=entry.slug,
            file=entry.file,
            file_sha256=sources_sha256(entry),
            class_name=entry.class_name,
            arguments=entry.arguments,
            data_range=entry.data_range,
            checkpoint=entry.given_checkpoint or entry.checkpoint,
            variant_of=entry.variant.of if entry.variant else None,
            **msgspec.structs.asdict(weights),
        ),
        environment=environment,
        dataset=DatasetInfo(
            label=dataset.label,
            split=dataset.split,
            folder=str(dataset.folder),
            images=len(dataset.pairs),
            has_hr=dataset.has_hr,
            sha256=dataset.sha256,
            notes=list(dataset.notes),
        ),
        images=Images(),
        runtime=Runtime(clock=CLOCKS[device.type], busy_cpu=device.type == "cpu" and plan.workers_on(device) > 0),
        memory=Memory(method=memory_method(device)),
    )


def _can_go_on(earlier: Record, record: Record, save_dir: Path | None) -> bool:
    """Return whether an earlier record is of the same model, in the same circumstances."""
    same = earlier.model == record.model and earlier.repository == record.repository
    return same and same_circumstances(earlier, record, save_dir)


def same_circumstances(earlier: Record, record: Record, save_dir: Path | None) -> bool:
    """Return whether both records share data, machine and method, and the restored images still exist."""
    machines = [[getattr(one.environment, key) for key in MACHINE] for one in (earlier, record)]
    methods = [(one.runtime.clock, one.runtime.busy_cpu, one.runtime.processes) for one in (earlier, record)]
    images = save_dir is None or all((save_dir / name).is_file() for name in earlier.images.name)
    return earlier.dataset == record.dataset and machines[0] == machines[1] and methods[0] == methods[1] and images


def _go_on(record: Record, earlier: Record, plan: MeasurementPlan, on_pass: Callable[[], object]) -> None:
    record.memory = deepcopy(earlier.memory)
    runs = record.runtime.runs = deepcopy(earlier.runtime.runs[: plan.runs])
    scored = len(runs[0]) if runs else 0  # an image whose entry was interrupted is scored again
    for key in Images.__struct_fields__:
        values = getattr(earlier.images, key) or [None] * scored  # None if an older version did not know this key
        setattr(record.images, key, values[:scored])
    record.runtime.parts = earlier.runtime.parts + 1
    record.runtime.others_cores = earlier.runtime.others_cores
    for _ in range(sum(map(len, runs))):
        on_pass()


def _run_over_images(
    runner: ModelRunner,
    dataset: Dataset,
    plan: MeasurementPlan,
    save_dir: Path | None,
    record: Record,
    on_pass: Callable[[], object],
    on_progress: Callable[[Record], None],
    on_first_pass: Callable[[float], None],
) -> None:
    workers = plan.workers_on(runner.device)
    runs, memory = record.runtime.runs, record.memory

    def finish_pass(run: list[float], runtime_ms: float) -> None:
        run.append(runtime_ms)
        if runner.device.type == "cuda":
            memory.peak_mib = max(memory.peak_mib or 0, runner.gpu_peak_mib() or 0)
        on_pass()
        on_progress(record)

    for number in range(plan.runs):
        if number == len(runs):
            runs.append([])
        run = runs[number]
        rest = replace(dataset, pairs=dataset.pairs[len(run) :])
        if number == 0:
            for result in evaluate(
                runner, rest, with_ssim=True, save_dir=save_dir, workers=workers, with_luma=plan.luma
            ):
                for key in Images.__struct_fields__:
                    getattr(record.images, key).append(getattr(result, key))
                finish_pass(run, result.runtime_ms)
                if len(run) == 1:
                    on_first_pass(result.runtime_ms)
        else:
            for runtime_ms in time_dataset(runner, rest, workers):
                finish_pass(run, runtime_ms)


def _measure_steady(runner: ModelRunner, dataset: Dataset, plan: MeasurementPlan, record: Record) -> None:
    """Time the largest image that was restored as a whole. Without such an image there is no steady time."""
    images = record.images
    whole = [0 if tile else pixels for tile, pixels in zip(images.tile, images.lr_pixels, strict=True)]
    if any(whole):
        inputs = fresh_inputs(largest_lr(dataset, whole), runner.entry.data_range)
        record.runtime.steady = measure_steady_runtime(
            lambda lr: forward(runner, lr).runtime_ms, inputs, plan.warmup, plan.repeats
        )


def photograph_of(dataset: Dataset, lr_pixels: list[int]) -> np.ndarray:
    """Return the middle of the largest LR image, cropped to the protocol's input size and mirrored if too small."""
    image = largest_lr(dataset, lr_pixels)
    for axis, side in enumerate(INPUT_SHAPE[2:]):
        missing = max(side - image.shape[axis], 0)
        image = np.pad(image, [(0, missing) if number == axis else (0, 0) for number in range(3)], mode="symmetric")
        start = (image.shape[axis] - side) // 2
        image = image.take(range(start, start + side), axis)
    return image


def _merge(record: Record, parts: list[Record]) -> None:
    for key in Images.__struct_fields__:
        setattr(record.images, key, interleave([getattr(part.images, key) for part in parts]))
    record.runtime.runs = [interleave(runs) for runs in zip(*(part.runtime.runs for part in parts), strict=True)]
    peaks = [part.memory.peak_mib for part in parts if part.memory.peak_mib is not None]
    record.memory.peak_mib = max(peaks, default=None)


def _counted(runner: ModelRunner, dataset: Dataset, record: Record) -> Complexity:
    counts = msgspec.structs.asdict(_count(runner))
    photograph = photograph_of(dataset, record.images.lr_pixels)
    return Complexity(**counts, input_shape=list(INPUT_SHAPE), computed=runner.computed(photograph))


def _count(runner: ModelRunner) -> Counts:
    try:
        return runner.count()
    except HarnessError:
        raise
    except Exception as error:  # untrusted code may raise anything
        file = runner.entry.file
        raise HarnessError(
            f"{file}: cannot be counted on {INPUT_SHAPE} ({in_one_line(error, file=file)}); the protocol's counter "
            "traces the network, which takes ordinary modules: none of torch.jit's, nothing compiled"
        ) from error
