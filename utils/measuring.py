"""The work of `eval.py`: measure the models of a Request, or show earlier results."""

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.challenge.rules import get_edition
from utils.challenge.score_tables import HEADER, score_markdown, score_notes, score_records, score_rows, score_text
from utils.data.datasets import Dataset, open_dataset, open_folders
from utils.data.images import to_tensor
from utils.data.sample import default_data_dir
from utils.errors import HarnessError
from utils.evaluate.distributed import World, joined_world
from utils.evaluate.fastest import FASTEST_FILE, fastest_variant
from utils.evaluate.measurement import ALONE, PostponedError
from utils.files import write_text
from utils.isolation.sandbox import choose_sandbox
from utils.measure.environment import choose_device
from utils.measure.precision import cost_line
from utils.progress import progress
from utils.record import RECORDS_FILE, Record, current_records, read_file, with_distinct_names
from utils.request import DataChoice, Request, check_models, is_registered, named_entries, with_variants
from utils.results.report import Section, write_report
from utils.results.tables import write_tables
from utils.resumable import ResumableMeasurement, Rules
from utils.zoo.registry import ModelEntry, Origin, check_id_is_free, find_entry, read_registry, register

PATIENCE_S = 300.0  # a model that would take longer is postponed until the others are measured


def run(request: Request) -> int:
    """Carry out a request. Return the exit status, 1 if a model has no complete record."""
    if request.show:
        return show(request, stored_records(request))
    if request.jobs > 1 and (request.models.file or request.models.backend == "auto"):
        raise HarnessError("--jobs: is for several models; leave it out with --model_file, or --backend auto")
    with joined_world() as world:
        if request.jobs > 1 and world.size > 1:
            raise HarnessError("--jobs: models or images share the GPUs, not both; leave out torchrun or --jobs")
        if (request.isolation.always or request.models.repository or request.models.file) and world.size > 1:
            raise HarnessError(
                "torchrun: is for the registry's models, in this process; leave it out with --isolated, --repository "
                "and --model_file"
            )
        return measure_and_show(request, world)


def measure_and_show(request: Request, world: World) -> int:
    """Measure the models of a request, and show them; return the exit status."""
    check_models(request.models)
    baseline_id = get_edition(request.edition).baseline_id if request.edition else None
    device = choose_device(request.device, world.local_rank)
    dataset = open_data(request.data, world)
    entries = chosen_entries(request, dataset, device, world, baseline_id)
    if request.models.repository:
        check_outside(request.models.repository, request.results, dataset)
    if request.models.register is not None:
        check_id_is_free(entries[0].id)
    results = request.results / RECORDS_FILE
    read_file(results)  # report an unusable file before the work, not after it
    if world.is_first and any(runs_apart(entry, request) for entry in entries):
        print(f"Models run in separate processes; {choose_sandbox(request.isolation.sandbox).line}")
    for precision in {entry.precision for entry in entries if entry.backend == "fast"}:
        if world.is_first and (line := cost_line(device, precision)):
            print(line)
    measure_all(entries, dataset, device, request, world)
    if not world.is_first:
        return 0
    records = current_records(results, [entry.key for entry in entries])
    if request.models.register is not None and records[0].is_complete:
        register(entries[0])  # now that it has been seen to run
    return show(request, records, dataset)


def check_outside(repository: Path, results: Path, dataset: Dataset) -> None:
    """Raise HarnessError if a checkout, which its models can read, holds the results or HR images."""
    folders = [results, dataset.folder, *(pair.hr_path.parent for pair in dataset.pairs[:1] if pair.hr_path)]
    for folder in folders:
        if Path(folder).resolve().is_relative_to(Path(repository).resolve()):
            raise HarnessError(f"{folder}: lies in --repository, whose models can read it; choose a folder elsewhere")


def chosen_entries(
    request: Request, dataset: Dataset, device: torch.device, world: World, baseline_id: int | None = None
) -> list[ModelEntry]:
    """Return the entries to measure, in order: the requested ones, plain forms of variants, the score's baseline."""
    models, registry = request.models, read_registry()
    entries = named_entries(models, registry)
    fastest = {}
    if models.backend == "auto":  # this runs models in this process, so only the registry's; see check_models
        for entry in entries:
            fastest[entry.key] = fastest_here(entry, registry, dataset, device, request, world)
    entries = with_variants(entries, models, registry, fastest)
    if baseline_id is not None and not any(is_registered(entry, baseline_id) for entry in entries):
        entries = [*entries, find_entry(baseline_id, registry)]
    return entries


def fastest_here(
    entry: ModelEntry,
    registry: list[ModelEntry],
    dataset: Dataset,
    device: torch.device,
    request: Request,
    world: World,
) -> ModelEntry:
    """Return a model's fastest variant on the first image of the data, as timed by the first process."""
    choice = None
    if world.is_first:
        lr = to_tensor(dataset.pairs[0].read_lr(), entry.data_range)
        cache = request.results / FASTEST_FILE
        choice = fastest_variant(entry, registry, request.models.precision, lr, device, cache)
        print(f"{entry.name}: {choice}")
    return world.from_first(choice.entry if choice else entry)


def stored_records(request: Request) -> list[Record]:
    """Return the records to show: all of them, or those of the requested registry ids and the baseline."""
    path = request.results / RECORDS_FILE
    file = read_file(path)
    records = current_records(path, file.models | file.incomplete)
    if not records:
        raise HarnessError(f"{path}: holds no results; leave out --show to measure some")
    if not request.models.ids:
        return records
    registered = [record for record in records if record.model.origin == Origin.REGISTRY]
    if unknown := set(request.models.ids) - {record.model.id for record in registered}:
        raise HarnessError(f"--model_id {min(unknown)}: not in {path}; leave out --show to measure it")
    wanted = {*request.models.ids, get_edition(request.edition).baseline_id if request.edition else None}
    return [record for record in registered if record.model.id in wanted]


def open_data(data: DataChoice, world: World = ALONE) -> Dataset:
    """Open the data of a request, by default `default_data_dir()`. The first process makes the sample if needed."""
    if data.data_dir and (data.hr or data.lr):
        raise HarnessError("--data_dir: holds both kinds of images; leave it out with --hr and --lr")
    if world.is_first and not (data.data_dir or data.hr or data.lr):
        default_data_dir()
    world.wait()
    if data.hr or data.lr:
        dataset = open_folders(data.hr, data.lr, data.split)
    else:
        dataset = open_dataset(data.data_dir or default_data_dir(), data.split)
    if world.is_first:
        print(f"Data: {dataset.label}, in {dataset.folder}")
    return dataset


def measure_all(
    entries: list[ModelEntry], dataset: Dataset, device: torch.device, request: Request, world: World
) -> None:
    """Measure models into the results file. Postpone those that take long, the slowest to the end.

    With several `jobs`, each job has its own process and GPU.
    """
    if request.jobs > 1:
        measure_each = partial(on_one_gpu, count=len(entries), dataset=dataset, request=request)
        pool: Any = one_process_per_gpu(request.jobs)
    else:
        measure_each = partial(
            measure_entry, count=len(entries), dataset=dataset, device=device, request=request, world=world
        )
        pool = nullcontext()
    with pool:
        over = pool.map if request.jobs > 1 else map
        patience_s = PATIENCE_S if len(entries) > 1 and world.size == 1 else None
        seconds = list(over(partial(measure_each, patience_s=patience_s), entries))
        postponed = [(wait, place) for place, wait in enumerate(seconds) if wait is not None]
        list(over(measure_each, [entries[place] for _, place in sorted(postponed)]))


def one_process_per_gpu(jobs: int) -> ProcessPoolExecutor:
    """Return a pool of processes that see one GPU each. Raise HarnessError if there are fewer GPUs."""
    gpus = torch.cuda.device_count()
    if gpus < jobs:
        raise HarnessError(f"--jobs {jobs}: takes a GPU for each, and {gpus} are here; two models would share a clock")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    context = get_context("spawn")
    free: Any = context.Queue()
    for number in range(jobs):
        free.put(visible[number] if len(visible) >= jobs else str(number))
    return ProcessPoolExecutor(jobs, context, see_one_gpu, (free,))


def see_one_gpu(free: Any) -> None:
    """Let this process see the next GPU that is free, and no other."""
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def on_one_gpu(
    entry: ModelEntry, count: int, dataset: Dataset, request: Request, patience_s: float | None = None
) -> float | None:
    """Run `measure_entry` in a process of `one_process_per_gpu`."""
    try:
        return measure_entry(entry, count, dataset, choose_device(request.device), request, ALONE, patience_s)
    except KeyboardInterrupt:
        os._exit(130)  # raised, it would go to the caller, and the next model would begin here


def measure_entry(
    entry: ModelEntry,
    count: int,
    dataset: Dataset,
    device: torch.device,
    request: Request,
    world: World,
    patience_s: float | None = None,
) -> float | None:
    """Measure one of `count` models into the results file.

    Return None, or the expected time [s] if the model is postponed because it would take longer than `patience_s`.

    An untrusted model runs in a worker process. If one of several models fails, only its record is lost. Under
    torchrun, a failure stops all processes, because the others may be waiting for this one.
    """
    rules = rules_of(entry, request) if runs_apart(entry, request) else None
    keep = request.save_images or request.report or not dataset.has_hr
    save_dir = request.results / "images" / entry.slug if keep else None
    results, plan = request.results / RECORDS_FILE, request.plan
    measurement = ResumableMeasurement(entry, results, rules, device, dataset, plan, save_dir, request.fresh)
    if name := measurement.measured_before():
        tqdm.write(f"{name}: measured before, unchanged")
        return None
    passes = plan.passes(len(world.part_of(dataset).pairs))
    try:
        with progress(total=passes, desc=entry.name, disable=not world.is_first or request.jobs > 1) as bar:
            reason = measurement.measure(world, bar.update, patience_s)
    except PostponedError as postponed:
        tqdm.write(f"{entry.name}: {postponed}")
        return postponed.seconds
    if reason:
        if rules:
            reason += f" (its output: {rules.logs})"
        models = request.models
        several = request.isolation.always or models.repository or (count > 1 and not models.file)
        if not several or world.size > 1:
            raise HarnessError(reason)
        tqdm.write(f"{measurement.name}: {reason}")
    elif request.jobs > 1:
        tqdm.write(f"{measurement.name}: measured")
    world.wait()  # the first process still times steady passes, which must not run beside the next model
    return None


def runs_apart(entry: ModelEntry, request: Request) -> bool:
    """Return whether an entry's code runs in a worker process.

    Models outside the registry do. A baseline that they are scored against does too, so that conditions are the same.
    """
    others = request.models.file or request.models.repository
    return bool(request.isolation.always or entry.origin != Origin.REGISTRY or (others and request.edition))


def rules_of(entry: ModelEntry, request: Request) -> Rules:
    """Return the Rules for a model that runs in a worker process."""
    repository = request.models.repository if entry.origin == Origin.REPOSITORY else None
    isolation, keeps_complete = request.isolation, request.models.repository is not None
    return Rules(request.results / "logs", isolation.limits, isolation.sandbox, repository, keeps_complete)


def show(request: Request, records: list[Record], dataset: Dataset | None = None) -> int:
    """Write and print the views of the records. Return the exit status, 1 if a model has no complete record.

    A report shows images of `dataset`, which is opened here if it is None.
    """
    results = request.results
    records = with_distinct_names(records)
    print(f"\n{write_tables(results, records)}")
    print(f"Results: {results / RECORDS_FILE}; tables: {results}/factsheet.txt, .md, .tex")
    complete = [record for record in records if record.is_complete]
    incomplete = [record for record in records if not record.is_complete]
    scoring, unscored = None, None
    try:
        scoring = score_records(complete, get_edition(request.edition)) if request.edition else None
    except HarnessError as error:  # it shall not cost the report
        unscored = error
    sections = [Section("Score", [list(HEADER), *score_rows(scoring)], score_notes(scoring))] if scoring else []
    if incomplete:
        reasons = [[record.model.name, record.incomplete_because] for record in incomplete]
        sections.append(Section("No row", [["Model", "Reason"], *reasons], []))
    if request.report and complete:
        page = Path(request.report) / "report.html"
        without = write_report(page, complete, dataset or open_data(request.data), results / "images", sections)
        print(f"Report: {page}")
        if without:
            print(f"No crops of {', '.join(without)}: restored images are missing; measure with --report to have them")
    if scoring:
        write_text(results / "scores.md", score_markdown(scoring))
        print(f"\n{score_text(scoring)}\nScores: {results / 'scores.md'}")
    if unscored:
        raise unscored
    return int(len(complete) < len(records))
