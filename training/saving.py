"""Writing checkpoints so that the file under its name is always whole."""

import os

import torch

from utils.errors import HarnessError


def save_atomically(values, path):
    """torch.save to `path` by way of a partial file. Raises HarnessError, keeping the old file, if that fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        partial.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200]
        raise HarnessError(f"{path}: cannot be written ({reason}); make room and go on with --resume") from error
