"""The results record: everything measured is written here once; tables, pages and scores are views of it.

A results file is JSON: {"schema": 4, "models": {KEY: record}, "incomplete": {KEY: record}}. KEY is `ModelEntry.key`:
where the model comes from, never its name, which two models may share. A model that is being measured, or whose
measurement stopped, stands under "incomplete" until it is complete; an older complete record of it stays under "models"
meanwhile. The classes below are the schema, read and written here alone. An infinite PSNR (identical images) is stored
as the string "inf".
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
BUSY_SHARE, BUSY_CORES = 0.05, 0.2  # of a pass's time, and of cores, from which on a machine is too busy to time on


class Status(StrEnum):
    """The state of a measurement."""

    COMPLETE = "complete"
    RUNNING = "running"  # or killed
    STOPPED = "stopped"  # `Record.reason` says why


class Isolation(StrEnum):
    """Where a model's code runs."""

    NONE = "none"  # in the process that measures: for trusted models alone
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
    """The way in which a model's weights were loaded.

    `sha256` is None without weights, and `missing_weights` says why; `ignored` is what lenient loading passed over;
    `notes` are lines on how the checkpoint was read.
    """

    sha256: str | None
    provenance: str
    missing_weights: str | None = None
    ignored: str | None = None
    notes: list[str] = field(default_factory=list)


class ModelInfo(WeightsInfo, kw_only=True):
    """The measured model. `slug` names its files; `file_sha256` is over all its sources if there are several.

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
    """One value per image, in order. `psnr` [dB] and `ssim`, on RGB, may be None, and so may those on luma.

    `tile` is the LR side of the tiles [pixels] where memory ran out on the whole image, else None; `nan` says whether
    the output held NaN, which counts as 0.
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

    `runs` holds one list per run, one value per image; `processes` shared the images; with `busy_cpu`, images were read
    and scored on the same CPU meanwhile; `parts` is 1, and one more for each time that the measurement was resumed.
    `host_runs` and `host_steady` are the host's own times, where those that are reported cannot be true. `others_cores`
    counts the cores that other processes used meanwhile, on average, where a CPU in this process was timed.
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
        """The runs that tables and scores use."""
        return self.host_runs or self.runs

    @property
    def trusted_steady(self) -> SteadyRuntime | None:
        """The steady runtime that tables and scores use."""
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

    `macs` is on random values, as the protocol counts, `photograph_macs` on a part of an image of the data, of the same
    size; `traced_macs` is what fvcore's trace has if the convolutions that it passes over are counted. `values` counts
    the numbers that a pass reads, parameters and hidden ones, in units of 32 bits.
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
        """All multiply-accumulates of a pass, on that input where there are more."""
        return max(self.macs, self.photograph_macs) + self.summed_products


class Complexity(Counts, kw_only=True):
    """The counts on an input of `input_shape`; `computed` is None if the dispatcher cannot look, and of variants."""

    input_shape: list[int]
    computed: Computed | None = None


class Tiles(Struct, kw_only=True):
    """Where tiles were used: their overlap, and how far the network looks [LR pixels]."""

    overlap: int
    reach: int


class Waiting(Struct, frozen=True):
    """The load of the machine: the share of their time that passes waited, and the cores that other processes used.

    They wait for their own threads, too, and for their caller; it takes others to make a machine busy.
    """

    share: float
    others_cores: float

    @property
    def is_too_much(self) -> bool:
        """Return whether times say nothing, because they may be the others' doing."""
        return self.share > BUSY_SHARE and self.others_cores > BUSY_CORES


class Audit(Struct, kw_only=True):
    """The findings about a model in a worker process.

    `sandbox` says which, or why none; `findings` are accusations, a line each (none: clean); `busy` is set where other
    processes had too many cores to check times; `figures` is what the host saw (utils/isolation/audit.py names them).
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
        """The counts of a complete record."""
        assert self.complexity is not None, "an incomplete record has no counts"
        return self.complexity

    @property
    def psnr_db(self) -> float | None:
        """Mean PSNR over the images [dB]; None without weights or HR images."""
        return mean(self.images.psnr)

    @property
    def ssim(self) -> float | None:
        """Mean SSIM over the images; None without weights or HR images."""
        return mean(self.images.ssim)

    @property
    def luma_psnr_db(self) -> float | None:
        """Mean PSNR on luma over the images [dB]; None if it was not measured, too."""
        return mean(self.images.luma_psnr)

    @property
    def luma_ssim(self) -> float | None:
        """Mean SSIM on luma over the images; None if it was not measured, too."""
        return mean(self.images.luma_ssim)

    @property
    def runtime_ms(self) -> float | None:
        """The organizers' runtime [ms]: the mean over images of each run, averaged over the runs."""
        return mean(mean(run) for run in self.runtime.trusted_runs if run)

    @property
    def incomplete_because(self) -> str:
        """Why the record is incomplete, in words."""
        return self.reason or "still running, or killed"


class Results(Struct, kw_only=True):
    """A results file."""

    schema: int = SCHEMA
    models: dict[str, Record] = field(default_factory=dict)
    incomplete: dict[str, Record] = field(default_factory=dict)


def read_file(path: Path | str) -> Results:
    """Return a results file; one that does not exist holds nothing.

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
    """Return {key: record} of the measurements in a results file that are under way, were stopped, or failed."""
    return read_file(path).incomplete


def store_record(path: Path | str, key: str, record: Record) -> None:
    """Set one model's record in a results file, keeping all others. Safe against crashes and other writers."""
    with locked(path):
        for partial in Path(path).parent.glob(f".{Path(path).name}.*.partial"):
            partial.unlink()  # of a writer that was killed: nobody else writes under this lock
        results = read_file(path)
        results.incomplete.pop(key, None)
        (results.models if record.is_complete else results.incomplete)[key] = record
        write_json(path, msgspec.to_builtins(results))


def records_by_name(path: Path | str) -> dict[str, Record]:
    """Return {name: record} of all records, complete or not, of a file in which no two models share a name."""
    results = read_file(path)
    return {record.model.name: record for record in (results.models | results.incomplete).values()}


def current_records(path: Path | str, keys: Iterable[str]) -> list[Record]:
    """Return the models' records in a results file, in order; an incomplete one goes before an older complete one."""
    results = read_file(path)
    return [results.incomplete.get(key) or results.models[key] for key in keys]


# What tells models of one name apart in a table; the first that differs for all of them is shown.
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
    """Return the records, in order, with names that tell them apart: of models that share one, each gets a label.

    The registry's own model keeps its name. The records given stay as they are.
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
    """Return the plain mean, None for no values or missing ones."""
    present, count = [], 0
    for value in values:
        count += 1
        if value is not None:
            present.append(value)
    return sum(present) / count if present and len(present) == count else None
