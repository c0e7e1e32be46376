"""Measuring one model completely: quality, runtime in both forms, memory and complexity, as one results record."""

from dataclasses import asdict, dataclass

from utils.complexity import INPUT_SHAPE, measure_complexity
from utils.environment import describe_environment
from utils.errors import HarnessError, in_one_line
from utils.evaluation import default_workers, evaluate, largest_lr, time_dataset
from utils.images import to_tensor
from utils.memory import METHODS, cpu_peak_mib, gpu_peak_mib, reset_peak
from utils.runtime import CLOCKS, PROTOCOL_METHOD, THROUGHPUT_MODE, measure_steady_runtime
from utils.sharding import Shard, interleave

ALONE = Shard()


@dataclass(frozen=True)
class Plan:
    """How much to measure: timed `runs` over the data set, and the steady runtime's `warmup` and `repeats`.

    `workers` threads read, judge and write beside the network; None means `default_workers`.
    """

    runs: int = 5
    warmup: int = 3
    repeats: int = 10
    workers: int | None = None

    def passes(self, images):
        """Forward passes over images that a measurement does."""
        return self.runs * images + self.warmup + self.repeats


def measure(
    loaded, dataset, device, plan, save_dir=None, on_pass=lambda: None, on_progress=lambda record: None, shard=ALONE
):
    """Measure a loaded model and return its record; see `utils/results.py` for the schema.

    `on_pass()` is called after each forward pass, `on_progress(record)` with what is there after each image of the
    first run and at the end. When anything stops the measurement, the record so far, marked incomplete with the
    reason, is given to `on_progress` before the exception goes on.

    With a `shard` of several processes each measures its part of the images; the record of the first one ends with all
    of them, that of the others stays incomplete and is only given back.
    """
    workers = default_workers(device) if plan.workers is None else plan.workers
    record = _start_record(loaded, dataset, device)
    if workers and device.type == "cpu":
        record["runtime"]["method"] += THROUGHPUT_MODE
    if shard.world > 1:
        record["runtime"]["method"] += f"; images shared by {shard.world} processes"
    reset_peak(device)
    try:
        _run_over_images(loaded, shard.part_of(dataset), device, plan, workers, save_dir, record, on_pass, on_progress)
        parts = shard.gather((record["images"], record["runtime"]["runs"], gpu_peak_mib(device)))
        if not shard.is_first:
            return record
        gpu_peaks = _merge(record, parts)
        lr = to_tensor(largest_lr(dataset, record["images"]["lr_pixels"]), loaded.entry.data_range).to(device)
        record["memory"] = {
            "method": METHODS[device.type],
            "peak_mib": max(gpu_peaks) if device.type == "cuda" else cpu_peak_mib(loaded.entry, lr.shape),
        }
        record["runtime"]["steady"] = asdict(measure_steady_runtime(loaded.model, lr, plan.warmup, plan.repeats))
        for _ in range(plan.warmup + plan.repeats):
            on_pass()
        record["complexity"] = {**asdict(_count(loaded)), "input_shape": list(INPUT_SHAPE)}
        record["status"] = "complete"
    except HarnessError as error:
        record["status"] = f"incomplete: {error}"
        raise
    finally:
        on_progress(record)
    return record


def _run_over_images(loaded, dataset, device, plan, workers, save_dir, record, on_pass, on_progress):
    images, runs = record["images"], record["runtime"]["runs"]
    runs.append([])
    for result in evaluate(loaded, dataset, device, with_ssim=True, save_dir=save_dir, workers=workers):
        runs[0].append(result.runtime_ms)
        for key in images:
            images[key].append(getattr(result, key))
        on_pass()
        on_progress(record)
    for _ in range(plan.runs - 1):
        run = []
        for runtime_ms in time_dataset(loaded, dataset, device, workers):
            run.append(runtime_ms)
            on_pass()
        runs.append(run)


def _merge(record, parts):
    all_images, all_runs, gpu_peaks = zip(*parts, strict=True)
    for key in record["images"]:
        record["images"][key] = interleave([images[key] for images in all_images])
    record["runtime"]["runs"] = [interleave(runs) for runs in zip(*all_runs, strict=True)]
    return gpu_peaks


def _count(loaded):
    try:
        return measure_complexity(loaded.model)
    except Exception as error:  # a stranger's code may raise anything
        raise HarnessError(f"{loaded.entry.file}: cannot be counted on {INPUT_SHAPE} ({in_one_line(error)})") from error


def _start_record(loaded, dataset, device):
    entry = loaded.entry
    return {
        "status": "incomplete: still running, or killed",
        "model": {
            "id": entry.id,
            "name": entry.name,
            "file": entry.file,
            "class": entry.class_name,
            "arguments": entry.arguments,
            "data_range": entry.data_range,
            "checkpoint": entry.checkpoint,
            "sha256": loaded.sha256,
            "provenance": loaded.provenance,
            "variant_of": entry.variant.get("of"),
            "missing_weights": loaded.missing_weights,
            "ignored": loaded.ignored,
        },
        "environment": describe_environment(device),
        "dataset": {
            "label": dataset.label,
            "split": dataset.split,
            "folder": str(dataset.folder),
            "images": len(dataset.pairs),
            "has_hr": dataset.has_hr,
        },
        "images": {"name": [], "lr_pixels": [], "psnr": [], "ssim": []},
        "runtime": {"method": PROTOCOL_METHOD, "clock": CLOCKS[device.type], "runs": [], "steady": None},
        "memory": None,
        "complexity": None,
    }
