"""The results record: everything measured is written here once; tables and reports are views of it.

A results file is JSON, `{"schema": 3, "models": {KEY: record}, "incomplete": {KEY: record}}`. KEY is
`ModelEntry.key`: where the model comes from, never its name, which two models may share. A model that is being
measured, or whose measurement stopped, stands under "incomplete" until it is complete; an older complete record of it
stays under "models" meanwhile. A record:

    status       "complete", or "incomplete: " and the reason
    model        id, name, origin ("registry", "file" or "repository"), slug (the name of its files), file, file_sha256
                 (over all its sources if there are several), class, arguments, data_range, checkpoint, sha256 (null
                 without weights), provenance, variant_of (null, or the id of the model whose function it computes in
                 another way), missing_weights (null, or why quality is absent), ignored (null, or what lenient loading
                 passed over), notes (lines on how the checkpoint was read)
    environment  date, device, gpu, cuda, cpu, cores, threads, memory_gib, platform, python, libraries, process ("the
                 judge's", or in which sandbox the model had one of its own)
    dataset      label, split, folder, images, has_hr, sha256 (of all images; utils/data/datasets.py says how), notes
    images       name, lr_pixels, psnr [dB], ssim, tile, nan: lists, one value per image; a quality value may be null;
                 tile is the LR side of the tiles [pixels] where memory ran out on the whole image, else null; nan says
                 whether the output held NaN, which counts as 0
    runtime      method, clock, sittings: 1, and one more for each time that the measurement went on after a stop; runs:
                 one list of ms per run, one value per image; steady: lr_height, lr_width, warmup, repeats, median_ms,
                 p10_ms, p90_ms (null until measured)
    memory       method, peak_mib (null until measured)
    repository   null, or what was measured of an organizers' checkout: folder, model_id, branch_sha256, files (their
                 sha256 by name)
    audit        null for a model that ran in this process; else ran, sandbox (which, or why none), notes, findings (a
                 line each; none: clean), busy (null, or share, of the passes' time that they waited for a core, and
                 others_cores, that other processes had, where that was too much to judge times), figures (what the
                 judge saw; utils/referee/audit.py names them)
    complexity   params, flops (multiply-accumulates), activations, convs: the protocol's exact counts; seen_macs: what
                 torch's dispatcher sees of multiply-accumulates (null if it cannot); input_shape
    tiles        null, or, where tiles were used, overlap and reach: how far the network looks [LR pixels]

An infinite PSNR (identical images) is stored as the string "inf".
"""

from pathlib import Path

from utils.errors import HarnessError
from utils.files import locked, read_json, write_json

SCHEMA = 3
RECORDS_FILE = "records.json"  # not results.json, the name of the organizers' file


def read_results(path):
    """Return {key: record} of the completed measurements in a results file; a file that does not exist holds none.

    Raises HarnessError if the file is not a results file or has another schema.
    """
    return _read(path)["models"]


def read_incomplete(path):
    """Return {key: record} of the measurements in a results file that are under way, were stopped, or failed."""
    return _read(path)["incomplete"]


def store_record(path, key, record):
    """Set one model's record in a results file, keeping all others. Safe against crashes and other writers."""
    with locked(path):
        for partial in Path(path).parent.glob(f".{Path(path).name}.*.partial"):
            partial.unlink()  # of a writer that was killed: nobody else writes under this lock
        values = _read(path)
        values["incomplete"].pop(key, None)
        values["models" if record["status"] == "complete" else "incomplete"][key] = record
        write_json(path, values)


def _read(path):
    values = read_json(path)
    if values is None:
        return {"schema": SCHEMA, "models": {}, "incomplete": {}}
    if values.get("schema") != SCHEMA or not {"models", "incomplete"} <= values.keys():
        raise HarnessError(
            f"{path}: results of another version (schema {values.get('schema')}, this is {SCHEMA}); move it away"
        )
    return values


def records_by_name(path):
    """Return {name: record} of all records, complete or not, of a file in which no two models share a name."""
    return {one["model"]["name"]: one for one in (read_results(path) | read_incomplete(path)).values()}


def current_records(path, keys):
    """Return the models' records in a results file, in order; what did not end well is marked incomplete."""
    complete, incomplete = read_results(path), read_incomplete(path)
    return [incomplete.get(key) or complete[key] for key in keys]


# What tells models of one name apart in a table; the first that differs for all of them is shown.
LABELS = (
    lambda model: Path(model["checkpoint"]).name if model["origin"] == "registry" else model["origin"],
    lambda model: f"id {model['id']}",
    lambda model: model["class"],
    lambda model: Path(model["file"]).name,
    lambda model: Path(model["file"]).parent.name,
    lambda model: Path(model["checkpoint"]).name,
    lambda model: model["slug"],
)


def with_distinct_names(records):
    """Return the records, in order, with names that tell them apart: of models that share one, each gets a label.

    The registry's own model keeps its name.
    """
    shown = []
    for record in records:
        model = record["model"]
        others = [
            other["model"] for other in records if other["model"]["name"] == model["name"] and not _is_registered(other)
        ]
        shared = sum(other["model"]["name"] == model["name"] for other in records) > 1
        if shared and not _is_registered(record):
            label = next(label for label in LABELS if len({label(other) for other in others}) == len(others))
            record = record | {"model": model | {"name": f"{model['name']} ({label(model)})"}}
        shown.append(record)
    return shown


def _is_registered(record):
    """Whether a record is of a registry's model with the registry's weights."""
    model = record["model"]
    return model["origin"] == "registry" and model["slug"] == f"{model['id']:02}_{model['name']}"


def mean(values):
    """Plain mean, None for no values or missing ones."""
    values = list(values)
    return sum(values) / len(values) if values and None not in values else None


def protocol_runtime_ms(record):
    """The organizers' runtime [ms]: the mean over images of each run, averaged over the runs."""
    return mean(mean(run) for run in record["runtime"]["runs"] if run)
