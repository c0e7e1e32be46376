"""A sandbox in which an untrusted process sees only what it needs: bubblewrap's namespaces, if available."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import HarnessError
from utils.files import ROOT
from utils.isolation.process import run_isolated
from utils.record import Isolation

MISSED = re.compile(r"No such file or directory: '(.+?)'|imports (\w+), which is not installed")  # in an error's line
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")  # what libraries read to choose their code
GPU = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/dri", "/dev/kfd")
GPU_SYSTEM = ("/sys", "/proc/driver")
HARNESS = (  # the part of this project that a worker needs
    *("utils/__init__.py", "utils/errors.py", "utils/files.py", "utils/processes.py", "utils/protocol.py"),
    *("utils/record.py", "utils/typed.py", "utils/zoo", "utils/measure", "utils/worker", "models/__init__.py"),
)


class Sandbox(NamedTuple):
    """The state of the sandbox: whether it works, and a line that says how, or why not."""

    works: bool
    line: str

    @property
    def isolation(self) -> Isolation:
        """Return the Isolation to write into a record."""
        return Isolation.SANDBOX if self.works else Isolation.PROCESS


def choose_sandbox(mode: str) -> Sandbox:
    """Return the Sandbox for a mode, "auto", "require" or "off".

    Raise HarnessError if it is required and does not work here.
    """
    if mode == "off":
        return Sandbox(False, "no sandbox (--sandbox off)")
    reason = why_not()
    if reason is None:
        return Sandbox(True, "sandbox: bubblewrap")
    if mode == "require":
        raise HarnessError(f"--sandbox require: {reason}; install Debian's bubblewrap, or take a container")
    return Sandbox(False, f"no sandbox ({reason})")


@functools.cache
def why_not() -> str | None:
    """Return why no sandbox works here, None if one does."""
    if not shutil.which("bwrap"):
        return "bwrap is not installed"
    run = subprocess.run(sandboxed(["/bin/true"], []), capture_output=True, text=True)
    lines = run.stderr.strip().splitlines() or [f"bwrap ends with status {run.returncode}"]
    return lines[-1][:200] if run.returncode else None


def sandboxed(
    command: Sequence[str],
    readable: Iterable[Path],
    gpu: bool = False,
    folder: Path | str = "/tmp",
    writable: Iterable[Path] = (),
) -> list[str]:
    """Return the command that runs `command` in the sandbox.

    It sees a read-only system, Python, the worker's part of this project, the `readable` and `writable` paths, and its
    own empty /tmp. It sees no network and no other process. With `gpu`, it also sees the GPU's device files. Its
    working directory is `folder`.
    """
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    words += ["--setenv", "USER", "worker"]  # there is no /etc/passwd, and parts of PyTorch ask for a name
    for path in (*SYSTEM, *HARDWARE, *python_folders(), *compiler_folders()):
        words += ["--ro-bind-try", path, path]
    if gpu:
        for path in (*GPU, *sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))):
            words += ["--dev-bind-try", path, path]
        for path in GPU_SYSTEM:
            words += ["--ro-bind-try", path, path]
    for shown in dict.fromkeys([*(ROOT / name for name in HARNESS), *map(Path, readable)]):
        words += ["--ro-bind-try", str(shown), str(shown)]
    for place in writable:
        words += ["--bind", str(place), str(place)]
    return [*words, "--remount-ro", "/", "--chdir", str(folder), "--", *map(str, command)]


def with_what_is_hidden(message: str, folder: Path) -> str:
    """Return a model's error message, with a hint if a missing file exists but is hidden by the sandbox.

    `folder` is that of the model's file.
    """
    for path, module in MISSED.findall(message):
        places = [path] if path else [Path(folder) / f"{module}.py", Path(folder) / module / "__init__.py"]
        if any(map(os.path.exists, places)):  # not Path.exists, which fails if a name is too long
            return (
                f"{message}; it is there, but hidden: a model is shown its file and its checkpoint alone. Put it into "
                "them, or name the checkout that they are from by --repository"
            )
    return message


def run_apart(command: Sequence[str], folder: Path, log_path: Path, mode: str = "auto") -> str | None:
    """Run a command in a folder that it may write to, sandboxed by `mode`. Return None, or why it failed."""
    if choose_sandbox(mode).works:
        command = sandboxed(command, [], folder=folder, writable=[folder])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return run_isolated(command, log_path, cwd=folder, env=environment)


def compiler_folders() -> list[str]:
    """Return the folder of the compiler that CC names, if it is in /opt. Triton and torch.compile need it."""
    parts = Path(shutil.which(os.environ.get("CC", "")) or "/").parts
    return [str(Path(*parts[:3]))] if parts[:2] == ("/", "opt") else []


def python_folders() -> list[str]:
    """Return the folders of this Python, its virtual environment and its packages."""
    folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(torch.__file__).parents[1])]
    folders += [str(Path(folder).resolve()) for folder in folders]
    return list(dict.fromkeys(folders))
