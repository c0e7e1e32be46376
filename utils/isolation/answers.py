"""Types and bounds of a worker's answers, which the host checks before it believes them.

Untrusted code can make the worker's process send any JSON. An answer of the wrong shape ends that worker, never the
host.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from utils.errors import HarnessError, is_shown
from utils.measure.architecture import Architecture
from utils.measure.counting import Watched
from utils.typed import Amount, Count, Text, Texts


class Answer(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer with named values, all of them required."""


class LoadAnswer(Answer, kw_only=True):
    """Details on the loading of the weights; see `utils.record.WeightsInfo`."""

    sha256: Text | None
    provenance: Text
    missing_weights: Text | None
    ignored: Text | None
    notes: Texts


class RepositoryAnswer(Answer, kw_only=True):
    """The answer of a repository's `select_model` about a model, and the files that it read."""

    name: Text
    data_range: Amount
    files: Texts
    notes: Texts


class ForwardAnswer(Answer, kw_only=True):
    """A pass as the worker saw it."""

    runtime_ms: Amount
    tile: Count | None
    gpu_peak_mib: Amount | None


class CountAnswer(Answer, kw_only=True):
    """The protocol's counts."""

    params: Count
    flops: Count
    activations: Count
    convs: Count


class TracedAnswer(Answer, kw_only=True):
    """The multiply-accumulates of a trace, and the count of numbers that the parameters hold."""

    macs: Count
    values: Count


class WatchAnswer(Watched, kw_only=True, forbid_unknown_fields=True):
    """A pass as torch's dispatcher saw it, and the time of a plain one."""

    macs: Count
    operators_ms: Amount
    outside_ms: Amount
    plain_ms: Amount


ANSWERS: dict[str, Any] = {  # by request
    "prepare": None,
    "echo": None,
    "load": LoadAnswer,
    "load_from_repository": RepositoryAnswer,
    "forward": ForwardAnswer,
    "architecture": Architecture,
    "count": CountAnswer,
    "traced": TracedAnswer,
    "watch": WatchAnswer,
    "changed": Texts,
    "reset_peak": None,
    "peak": Count,
    "reach": Count,
}


def checked(do: str, answer: Any, on_gpu: bool = False) -> Any:
    """Convert the answer to the request `do` to its type in ANSWERS. Raise HarnessError if it does not fit.

    On a GPU, the answer for a pass must contain its peak memory.
    """
    try:
        value = msgspec.convert(answer, ANSWERS[do])
    except (msgspec.ValidationError, OverflowError, UnicodeError):
        value, sound = None, False
    else:
        sound = all(all(map(is_shown, text)) for text in _texts(answer))
    if not sound or (do == "forward" and on_gpu and value.gpu_peak_mib is None):
        raise HarnessError(f"its process sent an invalid reply to {do!r}")
    return value


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
