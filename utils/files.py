"""Files: atomic writing, locks, TOML, JSON with infinite PSNR, and digests."""

import contextlib
import hashlib
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from utils.errors import HarnessError, one_line

ROOT = Path(__file__).parent.parent  # the project's folder
RECIPE_FILE, LOG_FILE = "recipe.toml", "log.csv"  # in the folder of a training run


def project_version() -> str:
    """Return this project's version, as pyproject.toml has it."""
    return str(read_toml(ROOT / "pyproject.toml", "restore it")["project"]["version"])


def file_sha256(path: Path | str) -> str:
    """Return the hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path | str) -> dict[str, Any] | None:
    """Return a JSON file's object, with "inf" in PSNR values as float, or None if there is no file.

    Raise HarnessError if the file cannot be read or does not hold a JSON object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):  # the later write reports NotADirectoryError better
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


def read_toml(path: Path | str, hint: str) -> dict[str, Any]:
    """Return a TOML file's values. Raise HarnessError, ending in the `hint`, if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except ValueError as error:
        raise HarnessError(f"{path}: not valid TOML ({error}); {hint}") from error


def write_json(path: Path | str, values: dict[str, Any]) -> None:
    """Write a JSON file atomically: readers see the old file or the new one. Raise HarnessError if that fails."""
    write_text(path, json_text(values))


def json_text(values: dict[str, Any]) -> str:
    """Return a dict as the text of a JSON file, with an infinite PSNR as "inf"."""
    return json.dumps(_map_psnr(values, lambda value: "inf" if value == math.inf else value), indent=1) + "\n"


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, creating its folder. Raise HarnessError if that fails."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path | str, instead: str = "choose another folder") -> Iterator[Path]:
    """Yield a temporary path beside `path`, creating the folder. It replaces `path` if the block succeeds.

    Raise HarnessError as `writing` does.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, instead):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path | str, instead: str = "choose another folder") -> Iterator[None]:
    """Turn an OSError in the block, which writes `path`, into a HarnessError that names the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(str(error), 200)
        raise HarnessError(f"{path}: cannot be written ({reason}); make room, or {instead}") from error


@contextlib.contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock of a file, a `.lock` file beside it, so that two runs do not lose each other's results."""
    lock_path = Path(path).with_name(f".{Path(path).name}.lock")
    with writing(path):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def held(folder: Path, instead: str) -> Iterator[None]:
    """Create a folder and lock it for this process, because two processes would corrupt the same files.

    Raise HarnessError at once if another process holds the lock; `instead` tells the user what else to do.
    """
    lock = FileLock(folder / ".in_use.lock", blocking=False)
    with writing(folder, instead):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise HarnessError(f"{folder}: another process is at work there; wait for it, or {instead}") from error
    try:
        yield
    finally:
        lock.release()


def _map_psnr(values: Any, change: Callable[[Any], Any], key: str = "") -> Any:
    if isinstance(values, dict):
        return {name: _map_psnr(value, change, name) for name, value in values.items()}
    if isinstance(values, list):
        return [_map_psnr(value, change, key) for value in values]
    return change(values) if "psnr" in key else values
