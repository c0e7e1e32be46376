"""What a contestant may answer: types and bounds of every answer, checked before the judge takes it for one.

Whoever rewrites the contestant's process can send anything that is JSON. What is not of the shape that a request asks
for ends that contestant, never the judge.
"""

import math

from utils.errors import HarnessError, is_shown

LARGEST = 1 << 62  # of the numbers
LONGEST = 4096  # of the texts and lists


def count(value):
    """Whether a value is a whole number that can count something."""
    return type(value) is int and 0 <= value < LARGEST


def amount(value):
    """Whether a value is a finite number from 0 on, such as a time."""
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < LARGEST


def text(value):
    """Whether a value is a text that can be a path or part of a line."""
    return isinstance(value, str) and len(value) <= LONGEST and all(map(is_shown, value))


def texts(value):
    """Whether a value is a list of texts."""
    return isinstance(value, list) and len(value) <= LONGEST and all(map(text, value))


def optional(check):
    """A check that None passes, too."""
    return lambda value: value is None or check(value)


NOTHING = optional(lambda value: False)
ANSWERS = {  # by request: a check of the answer, or of each of its values
    "prepare": NOTHING,
    "echo": NOTHING,
    "load": dict.fromkeys(("sha256", "missing_weights", "ignored"), optional(text))
    | {"provenance": text, "notes": texts},
    "load_from_repository": {"name": text, "data_range": amount, "files": texts, "notes": texts},
    "forward": {"runtime_ms": amount, "tile": optional(count), "gpu_peak_mib": optional(amount)},
    "count": dict.fromkeys(("params", "flops", "activations", "convs"), count),
    "watch": {"macs": count, "operators_ms": amount, "outside_ms": amount, "plain_ms": amount},
    "changed": texts,
    "reset_peak": NOTHING,
    "peak": count,
    "reach": count,
}


def checked(do, answer, on_gpu=False):
    """Return the answer to the request `do`. Raises HarnessError if it is not what was asked for.

    On a GPU it names the peak of its memory.
    """
    expected = ANSWERS[do]
    if isinstance(expected, dict):
        sound = isinstance(answer, dict) and answer.keys() == expected.keys()
        sound = sound and all(check(answer[name]) for name, check in expected.items())
    else:
        sound = expected(answer)
    if not sound or (do == "forward" and on_gpu and answer["gpu_peak_mib"] is None):
        raise HarnessError(f"its process answers {do!r} by what is no answer")
    return answer
