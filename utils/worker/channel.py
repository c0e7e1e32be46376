"""The channel between host and worker: JSON over a socket, images in shared memory. Nothing is ever unpickled."""

import fcntl
import json
import mmap
import os
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.protocol import SCALE

LR_PIXELS = 4096 * 4096  # of the largest LR image; memory that no image touches is never allocated
MESSAGE_BYTES = 1 << 20  # of the longest message


class Channel:
    """One end of the connection: `fds` are a socket and the shared memory of LR and SR, all float32."""

    def __init__(self, socket_fd: int, lr_fd: int, sr_fd: int):
        self.connection = Connection(socket_fd)
        self._lr, self._sr = _mapped(lr_fd, 3 * LR_PIXELS), _mapped(sr_fd, 3 * SCALE**2 * LR_PIXELS)

    def lr(self, height: int, width: int) -> Tensor:
        """Return the shared LR image as a 1 x 3 x H x W tensor."""
        return self._lr[: 3 * height * width].view(1, 3, height, width)

    def sr(self, height: int, width: int) -> Tensor:
        """Return the shared SR image of an LR image of H x W, as a 1 x 3 x 4H x 4W tensor."""
        return self._sr[: 3 * SCALE**2 * height * width].view(1, 3, SCALE * height, SCALE * width)

    def send(self, message: dict[str, Any]) -> None:
        """Send a dict. Raise OSError if nobody listens."""
        self.connection.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """Return the next dict. Raise EOFError or OSError if there is none, ValueError if it is not a dict."""
        try:
            message = json.loads(self.connection.recv_bytes(MESSAGE_BYTES))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(message, dict):
            raise ValueError("not an object")
        return message


def shared_memory_fds() -> tuple[int, int]:
    """Return the descriptors of new shared memory for LR and SR images, of a size that nobody can change."""
    return _new_memory(3 * LR_PIXELS), _new_memory(3 * SCALE**2 * LR_PIXELS)


def _new_memory(values: int) -> int:
    if not hasattr(os, "memfd_create"):  # not Linux
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), 4 * values)
            return os.dup(file.fileno())
    fd = os.memfd_create("images", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, 4 * values)
    # Otherwise one end could shrink the memory while the other one reads it.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _mapped(fd: int, values: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(mmap.mmap(fd, 4 * values), np.float32))
