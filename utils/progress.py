"""The progress bar of every command."""

import sys
from typing import Any

from tqdm import tqdm

LOG_S = 30.0  # between two states of a bar in a log


def progress(*args: Any, **settings: Any) -> Any:
    """Return tqdm's bar for `args` and `settings`. Where standard error goes to a log, its states are rare."""
    rare = {} if sys.stderr.isatty() else {"mininterval": LOG_S, "maxinterval": LOG_S}
    return tqdm(*args, **(rare | settings))
