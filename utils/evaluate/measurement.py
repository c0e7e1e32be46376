"""Measuring one model completely: quality, runtime in both forms, memory and complexity, as one results record."""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial

from utils.errors import ForeignError, HarnessError, in_one_line
from utils.evaluate.evaluation import default_workers, evaluate, forward, largest_lr, time_dataset
from utils.evaluate.fresh import fresh_inputs
from utils.evaluate.runner import Runner
from utils.evaluate.sharding import Shard, interleave
from utils.measure.complexity import INPUT_SHAPE
from utils.measure.environment import describe_environment
from utils.measure.memory import memory_method
from utils.measure.runtime import CLOCKS, PROTOCOL_METHOD, THROUGHPUT_MODE, measure_steady_runtime
from utils.measure.tiles import OVERLAP
from utils.zoo.registry import LoadedModel, sources_sha256

ALONE = Shard()
RUNNING = "incomplete: still running, or killed"  # the status of a record that grows
# What of the environment must not change in a measurement.
MACHINE = ("device", "gpu", "cpu", "threads", "libraries", "process")


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

    def workers_on(self, device):
        """The threads that there are on a device."""
        return default_workers(device) if self.workers is None else self.workers

    def is_done_by(self, record):
        """Whether a complete record holds as much as this asks for, and no more."""
        runtime = record["runtime"]
        steady = runtime["steady"] or {"warmup": self.warmup, "repeats": self.repeats}  # tiles have no steady time
        counts = len(runtime["runs"]), steady["warmup"], steady["repeats"]
        return counts == (self.runs, self.warmup, self.repeats)


def measure(
    runner,
    dataset,
    plan,
    save_dir=None,
    on_pass=lambda: None,
    on_progress=lambda record: None,
    shard=ALONE,
    earlier=None,
):
    """Measure the model that a Runner runs and return its record; see `utils/results/record.py` for the schema.

    `on_pass()` is called after each forward pass, `on_progress(record)` with what is there after each image of each
    run and at the end. When anything stops the measurement, the record so far, marked incomplete with the reason, is
    given to `on_progress` before the exception goes on. `earlier` is such a record: if it was measured under the same
    circumstances, this one goes on where it stopped.

    With a `shard` of several processes each measures its part of the images; the record of the first one ends with all
    of them, that of the others stays incomplete and is only given back.
    """
    record = _start_record(runner, dataset, plan)
    if shard.world > 1:
        record["runtime"]["method"] += f"; images shared by {shard.world} processes"
    elif earlier and _can_go_on(earlier, record, save_dir):
        _go_on(record, earlier, plan, on_pass)
    runner.reset_peak()
    try:
        _run_over_images(runner, shard.part_of(dataset), plan, save_dir, record, on_pass, on_progress)
        parts = shard.gather(record)
        if not shard.is_first:
            return record
        _merge(record, parts)
        if runner.device.type == "cpu":
            lr = largest_lr(dataset, record["images"]["lr_pixels"])
            record["memory"]["peak_mib"] = runner.cpu_peak_mib((1, 3, *lr.shape[:2]))
        _measure_steady(runner, dataset, plan, record)
        if any(record["images"]["tile"]):
            record["tiles"] = {"overlap": OVERLAP, "reach": runner.reach()}
        for _ in range(plan.warmup + plan.repeats):
            on_pass()
        record["complexity"] = {
            **asdict(_count(runner)),
            "seen_macs": runner.seen_macs(),
            "input_shape": list(INPUT_SHAPE),
        }
        if shard.world == 1:
            record["audit"] = runner.audit(record, dataset)
        record["status"] = "complete"
    except (HarnessError, ForeignError) as error:
        record["status"] = f"incomplete: {error}"
        raise
    except BaseException:
        record["status"] = "incomplete: interrupted"
        raise
    finally:
        on_progress(record)
    return record


def _can_go_on(earlier, record, save_dir):
    """Whether an earlier record is of the same model, in the same circumstances."""
    same = all(earlier.get(key) == record[key] for key in ("model", "repository"))
    return same and same_circumstances(earlier, record, save_dir)


def same_circumstances(earlier, record, save_dir):
    """Whether an earlier record is of another's data, machine and method, and its restored images are still there."""
    places = [[one["environment"].get(key) for key in MACHINE] for one in (earlier, record)]
    method = earlier["runtime"]["method"] == record["runtime"]["method"]
    images = save_dir is None or all((save_dir / name).is_file() for name in earlier["images"]["name"])
    return earlier["dataset"] == record["dataset"] and places[0] == places[1] and method and images


def _go_on(record, earlier, plan, on_pass):
    record["memory"] = deepcopy(earlier["memory"])
    runs = record["runtime"]["runs"] = deepcopy(earlier["runtime"]["runs"][: plan.runs])
    judged = len(runs[0]) if runs else 0  # an image whose entry was interrupted is judged again
    record["images"] = {key: values[:judged] for key, values in earlier["images"].items()}
    record["runtime"]["sittings"] = earlier["runtime"]["sittings"] + 1
    for _ in range(sum(map(len, runs))):
        on_pass()


def _run_over_images(runner, dataset, plan, save_dir, record, on_pass, on_progress):
    workers = plan.workers_on(runner.device)
    images, runs, memory = record["images"], record["runtime"]["runs"], record["memory"]

    def finish_pass(run, runtime_ms):
        run.append(runtime_ms)
        if runner.device.type == "cuda":
            memory["peak_mib"] = max(memory["peak_mib"] or 0, runner.gpu_peak_mib())
        on_pass()
        on_progress(record)

    for number in range(plan.runs):
        if number == len(runs):
            runs.append([])
        run = runs[number]
        rest = replace(dataset, pairs=dataset.pairs[len(run) :])
        if number == 0:
            for result in evaluate(runner, rest, with_ssim=True, save_dir=save_dir, workers=workers):
                for key in images:
                    images[key].append(getattr(result, key))
                finish_pass(run, result.runtime_ms)
        else:
            for runtime_ms in time_dataset(runner, rest, workers):
                finish_pass(run, runtime_ms)


def _measure_steady(runner, dataset, plan, record):
    """Time the largest image that was restored as a whole; without one there is no steady time."""
    whole = [
        0 if tile else pixels
        for tile, pixels in zip(record["images"]["tile"], record["images"]["lr_pixels"], strict=True)
    ]
    if any(whole):
        inputs = fresh_inputs(largest_lr(dataset, whole), runner.entry.data_range)
        steady = measure_steady_runtime(partial(forward, runner), inputs, plan.warmup, plan.repeats)
        record["runtime"]["steady"] = asdict(steady)


def _merge(record, parts):
    for key in record["images"]:
        record["images"][key] = interleave([part["images"][key] for part in parts])
    all_runs = [part["runtime"]["runs"] for part in parts]
    record["runtime"]["runs"] = [interleave(runs) for runs in zip(*all_runs, strict=True)]
    peaks = [part["memory"]["peak_mib"] for part in parts]
    record["memory"]["peak_mib"] = max((peak for peak in peaks if peak is not None), default=None)


def _count(runner):
    try:
        return runner.count()
    except HarnessError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        file = runner.entry.file
        raise HarnessError(
            f"{file}: cannot be counted on {INPUT_SHAPE} ({in_one_line(error, file=file)}); the protocol's counter "
            "traces the network, which takes ordinary modules: none of torch.jit's, nothing compiled"
        ) from error


def empty_record(entry, dataset, device, plan, process):
    """Return the record of a model of which nothing is known yet, not even whether it loads."""
    runner = Runner(LoadedModel(None, entry, None, None), device)
    runner.process = process
    return _start_record(runner, dataset, plan)


def _start_record(runner, dataset, plan):
    entry, device = runner.entry, runner.device
    busy = device.type == "cpu" and plan.workers_on(device)
    return {
        "status": RUNNING,
        "model": {
            "id": entry.id,
            "name": entry.name,
            "origin": entry.origin,
            "slug": entry.slug,
            "file": entry.file,
            "file_sha256": sources_sha256(entry),
            "class": entry.class_name,
            "arguments": entry.arguments,
            "data_range": entry.data_range,
            "checkpoint": entry.given_checkpoint or entry.checkpoint,
            "sha256": runner.sha256,
            "provenance": runner.provenance,
            "variant_of": entry.variant.get("of"),
            "missing_weights": runner.missing_weights,
            "ignored": runner.ignored,
            "notes": runner.checkpoint_notes,
        },
        "repository": runner.repository,
        "environment": describe_environment(device) | {"threads": runner.threads, "process": runner.process},
        "dataset": {
            "label": dataset.label,
            "split": dataset.split,
            "folder": str(dataset.folder),
            "images": len(dataset.pairs),
            "has_hr": dataset.has_hr,
            "sha256": dataset.sha256,
            "notes": list(dataset.notes),
        },
        "images": {"name": [], "lr_pixels": [], "psnr": [], "ssim": [], "tile": [], "nan": []},
        "runtime": {
            "method": PROTOCOL_METHOD + (THROUGHPUT_MODE if busy else ""),
            "clock": CLOCKS[device.type],
            "sittings": 1,
            "runs": [],
            "steady": None,
        },
        "memory": {"method": memory_method(device), "peak_mib": None},
        "complexity": None,
        "audit": None,
        "tiles": None,
    }
