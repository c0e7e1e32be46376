"""Read checkpoints safely: plain tensors only, never code. Write them atomically."""

import contextlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core.multiarray as multiarray
import safetensors.torch
import torch
from torch import Tensor, nn

from utils.errors import HarnessError, one_line

WRAPPERS = ("params_ema", "params", "state_dict", "model")  # keys under which training frameworks nest the weights
MAGICS = (b"PK\x03\x04", b"\x80")  # of torch.save's archives, and of its older pickles
TRUST, STATE_KEY = "--trust_checkpoint", "state_key"  # options that an error may name
# Types and functions in pickles of NumPy numbers and arrays beside the weights. All of them hold only data.
NUMPY_VALUES: list[Any] = [
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")),
    *(
        (function, f"{package}.multiarray.{function.__name__}")
        for function in (multiarray.scalar, multiarray._reconstruct)
        for package in ("numpy._core", "numpy.core")
    ),
]
NAMED_KEYS = 4  # of the missing or unexpected ones, in an error


StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """The loaded part of a checkpoint: a state dict and its key, "" if it is the whole file.

    `others` are the keys of the other state dicts in the file.
    """

    key: str
    state: StateDict
    others: tuple[str, ...] = ()


def load_state_dict(path: Path | str, key: str = "", trust: bool = False, remedies: Sequence[str] = ()) -> StateDict:
    """Read a state dict of CPU tensors, taken from under `key`, or from `params_ema`, `params`, `state_dict`, `model`.

    Raise HarnessError as `find_state_dict` does.
    """
    return find_state_dict(path, key, trust, remedies).state


def find_state_dict(path: Path | str, key: str = "", trust: bool = False, remedies: Sequence[str] = ()) -> Weights:
    """Return the Weights of a file of torch.save, or of a .safetensors file.

    Only tensors, plain values and NumPy's numbers are unpickled (`weights_only`). With `trust`, everything in the file
    is unpickled, which may run code; a whole pickled network then counts as its state dict. `remedies` are the options
    among TRUST and STATE_KEY that an error may suggest. Raise HarnessError if the file is missing, is not a checkpoint,
    or holds anything that could run code.
    """
    path = Path(path)
    state = read_checkpoint(path, trust, remedies)
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if key and not (isinstance(state, dict) and isinstance(state.get(key), dict)):
        raise HarnessError(f"{path}: holds nothing under {key}, but {_found(state)}; name another {STATE_KEY}")
    nested = [name for name, value in state.items() if _is_state_dict(value)] if isinstance(state, dict) else []
    if not key and isinstance(state, dict):
        key = next((key for key in WRAPPERS if isinstance(state.get(key), dict)), "")
    if key:
        state = state[key]
    if not _is_state_dict(state):
        if nested and STATE_KEY in remedies:
            remedy = f'write {STATE_KEY} = "{nested[0]}" into its TOML file'
        else:
            remedy = "save it again as model.state_dict()"
        raise HarnessError(f"{path}: holds no state dict of tensors, but {_found(state)}; {remedy}")
    return Weights(key, state, tuple(name for name in nested if name != key) if key else ())


def read_checkpoint(
    path: Path, trust: bool, remedies: Sequence[str] = (), load: Callable[..., Any] = torch.load, device: str = "cpu"
) -> Any:
    """Return the contents of a checkpoint, its tensors on `device`; `load` is torch.load. See `find_state_dict`."""
    if not path.is_file():
        raise HarnessError(f"{path}: no such checkpoint; put the file there or name another")
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return safetensors.torch.load_file(path, device)
        if not head.startswith(MAGICS):
            raise EOFError("neither a zip archive nor a pickle")
        with torch.serialization.safe_globals(NUMPY_VALUES):
            return load(path, map_location=device, weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise HarnessError(
            f"{path}: not plain tensors, so loading it could run code; save it again as model.state_dict()"
            + (f", or add {TRUST} if you would run its author's code" if TRUST in remedies else "")
        ) from error
    except Exception as error:  # torch raises many kinds for a broken file
        raise HarnessError(f"{path}: not a readable checkpoint; copy or download it again") from error


def without_prefix(state: StateDict, expected: Mapping[str, Tensor]) -> tuple[StateDict, str | None]:
    """Remove the prefix of a state dict's keys. Return the result and a note, or the same state dict and None.

    DataParallel adds `module.`, torch.compile `_orig_mod.`, a wrapping class its own name. Keys without the prefix are
    left out.
    """
    prefix = prefix_of(state, expected)
    if not prefix:
        return state, None
    kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = len(state) - len(kept)
    also = f", and {others} other keys left out" if others else ""
    return kept, f"the checkpoint's keys begin with {prefix!r}, which was taken off{also}"


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


def _found(state: Any) -> str:
    """Return what an unsuitable checkpoint holds: the names of its keys, or its type."""
    if not isinstance(state, dict):
        return type(state).__name__
    names = ", ".join(map(str, list(state)[:NAMED_KEYS])) + (" …" if len(state) > NAMED_KEYS else "")
    return names or "nothing"


def load_strictly(model: nn.Module, state: StateDict, path: Path | str) -> None:
    """Call `load_state_dict(strict=True)`. Raise HarnessError naming missing and unexpected keys and wrong shapes."""
    problems = differences(model.state_dict(), state)
    if problems:
        prefix = prefix_of(state, model.state_dict())
        remedy = f"save it again without the {prefix!r} that its keys begin with; " if prefix else ""
        raise HarnessError(f"{path}: {remedy}does not fit {type(model).__name__} ({problems})")
    model.load_state_dict(state, strict=True)


def load_leniently(model: nn.Module, state: StateDict, path: Path | str) -> str | None:
    """Call `load_state_dict(strict=False)`. Return a line on what did not fit, or None if everything did.

    Raise HarnessError if nothing fits or a shape is wrong, which strict=False does not allow either.
    """
    expected = model.state_dict()
    problems = differences(expected, state)
    if not expected.keys() & state.keys() or "wrong shapes" in problems:
        raise HarnessError(f"{path}: does not fit {type(model).__name__} even leniently ({problems})")
    model.load_state_dict(state, strict=False)
    return problems or None


def prefix_of(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return the prefix of all expected keys in a state dict, such as DataParallel's, or "" if there is none.

    The state dict may hold other keys, too.
    """
    last = next(iter(expected), "")
    candidates = {key.removesuffix(last) for key in state if last and key.endswith(last)} - {""}
    return next((prefix for prefix in sorted(candidates) if all(prefix + key in state for key in expected)), "")


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Name the missing and unexpected keys and wrong shapes of a state dict, "" if there are none."""
    wrong_shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    return "; ".join(
        f"{len(keys)} {kind}: {', '.join(sorted(keys)[:NAMED_KEYS])}{' …' if len(keys) > NAMED_KEYS else ''}"
        for kind, keys in (
            ("missing keys", expected.keys() - state.keys()),
            ("unexpected keys", state.keys() - expected.keys()),
            ("wrong shapes", wrong_shapes),
        )
        if keys
    )


def save_atomically(values: Any, path: Path) -> None:
    """Write to `path` by torch.save through a partial file, creating the folder.

    If that fails, keep the old file and raise HarnessError.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        with contextlib.suppress(OSError):  # without a folder there is no file to remove
            partial.unlink(missing_ok=True)
        raise HarnessError(
            f"{path}: cannot be written ({one_line(str(error), 200)}); make room, or choose another place"
        ) from error
