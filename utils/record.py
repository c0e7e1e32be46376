"""The results record: every result is written here once. Tables, pages and scores are views of it.

A results file is JSON: {"schema": 4, "models": {KEY: record}, "incomplete": {KEY: record}}. KEY is `ModelEntry.key`:
it says where the model comes from. It is never the name, because two models may share one. While a model is being
measured, or after its measurement has stopped, its record is under "incomplete"; an older complete record stays under
"models". The classes below are the schema, which only this module reads and writes. An infinite PSNR (identical
images) is stored as the string "inf".
"""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from utils.errors import HarnessError
from utils.files import locked, read_json, write_json

SCHEMA = 4
RECORDS_FILE = "records.json"  # not results.json, the name of the organizers' file
BUSY_SHARE, BUSY_CORES = 0.05, 0.2  # of a pass's time, and of cores; above both, a machine is too busy for timing


class Status(StrEnum):
    """The state of a measurement."""

    COMPLETE = "complete"
    RUNNING = "running"  # or killed
    STOPPED = "stopped"  # `Record.reason` says why


class Isolation(StrEnum):
    """Where a model's code runs."""

    NONE = "none"  # in the process that measures: for trusted models only
    PROCESS = "process"  # in a worker process
    SANDBOX = "sandbox"  # in a worker process that sees nothing but its own files


class Clock(StrEnum):
    """The clock that times a pass."""

    CUDA_EVENTS = "cuda_events"
    WALL = "wall_clock"


class MemoryMethod(StrEnum):
    """The quantity whose peak is the peak memory."""

    GPU_ALLOCATED = "gpu_allocated"  # torch.cuda.max_memory_allocated over the whole run
    PROCESS_GROWTH = "process_growth"  # resident growth of a fresh process in one pass over the largest image
    PROCESS_GROWTH_WITH_BUILDING = "process_growth_with_building"  # where a peak cannot be reset after building


class WeightsInfo(Struct, kw_only=True):
    """Details on the loading of a model's weights.

    Without weights, `sha256` is None and `missing_weights` says why. `ignored` names what lenient loading skipped.
    `notes` are lines on how the checkpoint was read.
    """

    sha256: str | None
    provenance: str
    missing_weights: str | None = None
    ignored: str | None = None
    notes: list[str] = field(default_factory=list)


class ModelInfo(WeightsInfo, kw_only=True):
    """The measured model. `slug` names its files; `file_sha256` covers all its sources if there are several.

    `variant_of` is the id of the model whose function it computes in another way, or None.
    """

    id: int
    name: str
    origin: str  # "registry", "file" or "repository"
    slug: str
    file: str
    file_sha256: str
    class_name: str = field(name="class")
    arguments: dict[str, Any] | list[Any]
    data_range: float
    checkpoint: str
    variant_of: int | None


class Environment(Struct, kw_only=True):
    """The machine and software of a measurement. `date` is UTC; `version` is this project's."""

    date: str
    device: str
    gpu: str | None
    cuda: str | None
    cpu: str
    cores: int | None
    threads: int
    memory_gib: float
    platform: str
    python: str
    libraries: dict[str, str]
    isolation: Isolation = Isolation.NONE
    version: str = ""


class DatasetInfo(Struct, kw_only=True):
    """The images; `sha256` is of all of them (utils/data/datasets.py says how)."""

    label: str
    split: str
    folder: str
    images: int
    has_hr: bool
    sha256: str
    notes: list[str]


class Images(Struct, kw_only=True):
    """One value per image, in order. `psnr` [dB] and `ssim` are on RGB. They and the values on luma may be None.

    `tile` is the LR side of the tiles [pixels] if memory ran out on the whole image, else None. `nan` says whether the
    output contained NaN, which counts as 0.
    """

    name: list[str] = field(default_factory=list)
    lr_pixels: list[int] = field(default_factory=list)
    psnr: list[float | None] = field(default_factory=list)
    ssim: list[float | None] = field(default_factory=list)
    tile: list[int | None] = field(default_factory=list)
    nan: list[bool] = field(default_factory=list)
    luma_psnr: list[float | None] = field(default_factory=list)
    luma_ssim: list[float | None] = field(default_factory=list)


class SteadyRuntime(Struct, kw_only=True):
    """Runtime of repeated passes on one LR size [pixels] after a warm-up: median, 10th and 90th percentile [ms]."""

    lr_height: int
    lr_width: int
    warmup: int
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float


class Runtime(Struct, kw_only=True):
    """The runtime of each image [ms], as the model's process reports it.

    `runs` holds one list per run, with one value per image. `processes` is the number of processes that shared the
    images. With `busy_cpu`, images were read and scored on the same CPU meanwhile. `parts` is 1 plus the number of
    times that the measurement was resumed. `host_runs` and `host_steady` are the host's own times if the reported ones
    cannot be true. `others_cores` is the average number of cores that other processes used meanwhile; it is known only
    for a model that was timed on a CPU in the measuring process.
    """

    clock: Clock
    processes: int = 1
    busy_cpu: bool = False
    parts: int = 1
    runs: list[list[float]] = field(default_factory=list)
    steady: SteadyRuntime | None = None
    host_runs: list[list[float]] | None = None
    host_steady: SteadyRuntime | None = None
    others_cores: float | None = None

    @property
    def trusted_runs(self) -> list[list[float]]:
        """Return the runs that tables and scores use."""
        return self.host_runs or self.runs

    @property
    def trusted_steady(self) -> SteadyRuntime | None:
        """Return the steady runtime that tables and scores use."""
        return self.host_steady or self.steady


class Memory(Struct, kw_only=True):
    """Peak memory [MiB]; None until measured."""

    method: MemoryMethod
    peak_mib: float | None = None


class Counts(Struct, kw_only=True):
    """The protocol's exact counts: `flops` are multiply-accumulates, `activations` outputs of convolution modules."""

    params: int
    flops: int
    activations: int
    convs: int


class Computed(Struct, kw_only=True):
    """The computation of a network as torch's dispatcher sees it; utils/measure/counting.py explains the terms.

    `macs` is counted on random values, as in the protocol. `photograph_macs` is counted on a crop of the same size from
    an image of the data. `traced_macs` is the count of fvcore's trace, including convolutions that fvcore skips.
    `values` counts the numbers that a pass reads, parameters and hidden ones, in units of 32 bits.
    """

    macs: int
    photograph_macs: int
    traced_macs: int
    summed_products: int
    convs: int
    activations: int
    values: int
    hidden_values: int
    hidden: list[str]
    made_weights: int
    unpacked_weights: int
    unknown: list[str]

    @property
    def flops(self) -> int:
        """Return all multiply-accumulates of a pass, on random values or the photograph, whichever needs more."""
        return max(self.macs, self.photograph_macs) + self.summed_products


class Complexity(Counts, kw_only=True):
    """The counts on an input of `input_shape`; `computed` is None for variants, or if the dispatcher sees nothing."""

    input_shape: list[int]
    computed: Computed | None = None


class Tiles(Struct, kw_only=True):
    """The overlap of the tiles, if tiles were used, and the network's reach [LR pixels]."""

    overlap: int
    reach: int


class Waiting(Struct, frozen=True):
    """The load of the machine: the share of their time that passes waited, and the cores that other processes used.

    Passes also wait for their own threads and their caller. A machine is busy only if other processes use its cores.
    """

    share: float
    others_cores: float

    @property
    def is_too_much(self) -> bool:
        """Return whether times mean nothing, because other processes may have caused them."""
        return self.share > BUSY_SHARE and self.others_cores > BUSY_CORES


class Audit(Struct, kw_only=True):
    """The findings about a model in a worker process.

    `sandbox` names the sandbox, or says why there is none. `findings` are accusations, one line each; without any, the
    model is clean. `busy` is set if other processes used too many cores to check times. `figures` holds what the host
    saw (utils/isolation/audit.py names them).
    """

    sandbox: str
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    busy: Waiting | None = None
    figures: dict[str, float | None] = field(default_factory=dict)


class Repository(Struct, kw_only=True):
    """The measured part of an organizers' checkout: the branch of its `select_model`, and `files` by their sha256."""

    folder: str
    model_id: int
    branch_sha256: str
    files: dict[str, str | None]


class Record(Struct, kw_only=True):
    """All that was measured of one model."""

    status: Status
    reason: str | None = None
    model: ModelInfo
    environment: Environment
    dataset: DatasetInfo
    images: Images
    runtime: Runtime
    memory: Memory
    repository: Repository | None = None
    complexity: Complexity | None = None
    audit: Audit | None = None
    tiles: Tiles | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether everything was measured."""
        return self.status == Status.COMPLETE

    @property
    def counts(self) -> Complexity:
        """Return the counts of a complete record."""
        assert self.complexity is not None, "an incomplete record has no counts"
        return self.complexity

    @property
    def psnr_db(self) -> float | None:
        """Return the mean PSNR over the images [dB], or None without weights or HR images."""
        return mean(self.images.psnr)

    @property
    def ssim(self) -> float | None:
        """Return the mean SSIM over the images, or None without weights or HR images."""
        return mean(self.images.ssim)

    @property
    def luma_psnr_db(self) -> float | None:
        """Return the mean PSNR on luma over the images [dB], or None if it was not measured."""
        return mean(self.images.luma_psnr)

    @property
    def luma_ssim(self) -> float | None:
        """Return the mean SSIM on luma over the images, or None if it was not measured."""
        return mean(self.images.luma_ssim)

    @property
    def runtime_ms(self) -> float | None:
        """Return the organizers' runtime [ms]: the mean over images of each run, averaged over the runs."""
        return mean(mean(run) for run in self.runtime.trusted_runs if run)

    @property
    def incomplete_because(self) -> str:
        """Return in words why the record is incomplete."""
        return self.reason or "still running, or killed"


class Results(Struct, kw_only=True):
    """A results file."""

    schema: int = SCHEMA
    models: dict[str, Record] = field(default_factory=dict)
    incomplete: dict[str, Record] = field(default_factory=dict)


def read_file(path: Path | str) -> Results:
    """Return the contents of a results file; a missing file counts as empty.

    Raise HarnessError if the file is not a results file, or has another schema.
    """
    values = read_json(path)
    if values is None:
        return Results()
    if values.get("schema") != SCHEMA:
        raise HarnessError(
            f"{path}: results of another version (schema {values.get('schema')}, this is {SCHEMA}); move it away"
        )
    try:
        return msgspec.convert(values, Results)
    except msgspec.ValidationError as error:
        raise HarnessError(f"{path}: not a results file ({error}); move it away") from error


def read_results(path: Path | str) -> dict[str, Record]:
    """Return {key: record} of the completed measurements in a results file. Raise HarnessError as `read_file`."""
    return read_file(path).models


def read_incomplete(path: Path | str) -> dict[str, Record]:
    """Return {key: record} of the running, stopped and failed measurements in a results file."""
    return read_file(path).incomplete


def store_record(path: Path | str, key: str, record: Record) -> None:
    """Set one model's record in a results file, keeping all others. Safe against crashes and other writers."""
    with locked(path):
        for partial in Path(path).parent.glob(f".{Path(path).name}.*.partial"):
            partial.unlink()  # left by a killed writer: nobody else writes under this lock
        results = read_file(path)
        results.incomplete.pop(key, None)
        (results.models if record.is_complete else results.incomplete)[key] = record
        write_json(path, msgspec.to_builtins(results))


def records_by_name(path: Path | str) -> dict[str, Record]:
    """Return {name: record} of all records, complete or not. No two models in the file may share a name."""
    results = read_file(path)
    return {record.model.name: record for record in (results.models | results.incomplete).values()}


def current_records(path: Path | str, keys: Iterable[str]) -> list[Record]:
    """Return the records of `keys`, in order. An incomplete record takes precedence over an older complete one."""
    results = read_file(path)
    return [results.incomplete.get(key) or results.models[key] for key in keys]


# Labels that distinguish models of one name in a table; the first one that differs for all of them is shown.
LABELS = (
    lambda model: Path(model.checkpoint).name if model.origin == "registry" else model.origin,
    lambda model: f"id {model.id}",
    lambda model: model.class_name,
    lambda model: Path(model.file).name,
    lambda model: Path(model.file).parent.name,
    lambda model: Path(model.checkpoint).name,
    lambda model: model.slug,
)


def with_distinct_names(records: list[Record]) -> list[Record]:
    """Return the records, in order, with distinct names: models that share a name get a label.

    The registry's own model keeps its name. The given records are not changed.
    """
    shown = []
    for record in records:
        name = record.model.name
        sharing = [other.model for other in records if other.model.name == name]
        if len(sharing) > 1 and not _is_registered(record.model):
            others = [model for model in sharing if not _is_registered(model)]
            label = next(label for label in LABELS if len({label(model) for model in others}) == len(others))
            model = msgspec.structs.replace(record.model, name=f"{name} ({label(record.model)})")
            record = msgspec.structs.replace(record, model=model)
        shown.append(record)
    return shown


def _is_registered(model: ModelInfo) -> bool:
    """Return whether a model is the registry's with the registry's weights."""
    return model.origin == "registry" and model.slug == f"{model.id:02}_{model.name}"


def mean(values: Iterable[float | None]) -> float | None:
    """Return the plain mean, or None if there are no values or one of them is None."""
    present, count = [], 0
    for value in values:
        count += 1
        if value is not None:
            present.append(value)
    return sum(present) / count if present and len(present) == count else None
