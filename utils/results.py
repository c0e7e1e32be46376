"""The results record: everything measured is written here once; tables and reports are views of it.

A results file is JSON, `{"schema": 2, "models": {NAME: record}, "incomplete": {NAME: record}}`. A model that is being
measured, or whose measurement stopped, stands under "incomplete" until it is complete; an older complete record of it
stays under "models" meanwhile. A record:

    status       "complete", or "incomplete: " and the reason
    model        id, name, file, file_sha256, class, arguments, data_range, checkpoint, sha256 (null without weights),
                 provenance,
                 variant_of (null, or the id of the model whose function it computes in another way), missing_weights
                 (null, or why quality is absent), ignored (null, or what lenient loading passed over)
    environment  date, device, gpu, cuda, cpu, cores, threads, memory_gib, platform, python, libraries
    dataset      label, split, folder, images, has_hr
    images       name, lr_pixels, psnr [dB], ssim, tile: lists, one value per image; a quality value may be null; tile
                 is the LR side of the tiles [pixels] where memory ran out on the whole image, else null
    runtime      method, clock, sittings: 1, and one more for each time that the measurement went on after a stop; runs:
                 one list of ms per run, one value per image; steady: lr_height, lr_width, warmup, repeats, median_ms,
                 p10_ms, p90_ms (null until measured)
    memory       method, peak_mib (null until measured)
    complexity   params, flops (multiply-accumulates), activations, convs: exact counts; input_shape

An infinite PSNR (identical images) is stored as the string "inf".
"""

import fcntl
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

from utils.errors import HarnessError

SCHEMA = 2
RECORDS_FILE = "records.json"  # not results.json, the name of the organizers' file


def read_results(path):
    """Return {name: record} of the completed measurements in a results file; a file that does not exist holds none.

    Raises HarnessError if the file is not a results file or has another schema.
    """
    return _read(path)["models"]


def read_incomplete(path):
    """Return {name: record} of the measurements in a results file that are under way, were stopped, or failed."""
    return _read(path)["incomplete"]


def store_record(path, name, record):
    """Set one model's record in a results file, keeping all others. Safe against crashes and other writers."""
    with locked(path):
        for partial in Path(path).parent.glob(f".{Path(path).name}.*.partial"):
            partial.unlink()  # of a writer that was killed: nobody else writes under this lock
        values = _read(path)
        values["incomplete"].pop(name, None)
        values["models" if record["status"] == "complete" else "incomplete"][name] = record
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


def read_json(path):
    """Return a JSON file's object with "inf" turned into float, None if there is no file. Raises HarnessError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):  # the latter is better said by who wants to write there
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error}); check its permissions") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise HarnessError(f"{path}: not valid JSON ({error}); move it away") from error
    if not isinstance(values, dict):
        raise HarnessError(f"{path}: not a results file; move it away")
    return _map_psnr(values, lambda value: math.inf if value == "inf" else value)


def write_json(path, values):
    """Write a JSON file atomically: readers see the old one or the new one, never a part. Raises HarnessError."""
    text = json.dumps(_map_psnr(values, lambda value: "inf" if value == math.inf else value), indent=1)
    write_text(path, text + "\n")


def write_text(path, text):
    """Write a text file atomically, creating its folder. Raises HarnessError if that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from error


@contextmanager
def locked(path):
    """Hold a file's lock (a `.lock` file beside it), so that two runs do not lose each other's results."""
    lock_path = Path(path).with_name(f".{Path(path).name}.lock")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(lock_path, "w")
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _map_psnr(values, change, key=""):
    if isinstance(values, dict):
        return {name: _map_psnr(value, change, name) for name, value in values.items()}
    if isinstance(values, list):
        return [_map_psnr(value, change, key) for value in values]
    return change(values) if "psnr" in key else values
