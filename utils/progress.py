"""The progress bar of every command, and durations in words."""

import sys
from typing import Any

from tqdm import tqdm

LOG_S = 30.0  # between two updates of a bar in a log


def progress(*args: Any, **settings: Any) -> Any:
    """Return a tqdm bar for `args` and `settings`. Update it rarely if standard error is not a terminal."""
    rare = {} if sys.stderr.isatty() else {"mininterval": LOG_S, "maxinterval": LOG_S}
    return tqdm(*args, **(rare | settings))


def time_words(seconds: float) -> str:
    """Return a duration as people say it: 40 s, 12 min, 2.5 h."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
