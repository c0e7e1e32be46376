"""Watch a process until it is gone. It may hang, crash, use up memory, print or fork without end."""

import contextlib
import io
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from tqdm import tqdm

from utils.errors import one_line
from utils.files import writing
from utils.measure.environment import memory_bytes
from utils.progress import time_words

LOG_BYTES = 1 << 20  # of a process's output that are kept
POLL_S = 0.05
CHILDREN_ARE_TOLD = Path("/proc/thread-self/children").exists()
start_process = subprocess.Popen  # tests replace it by a function that forks
ENDING_S = 5
TOLD_AFTER_S = 30.0


@dataclass(frozen=True)
class Limits:
    """The limits of a process and its descendants: time [s], resident memory [bytes], number of processes.

    `pass_seconds` is the limit of one forward pass [s]; with None, only `seconds` applies.
    """

    seconds: float = 3600.0
    memory_bytes: float = 0.9 * memory_bytes()
    processes: int = 64
    pass_seconds: float | None = None


@dataclass
class Task:
    """Something to wait for, with its start, its deadline and the time of the next message, by the monotonic clock."""

    what: str
    since_s: float
    deadline_s: float
    tell_at_s: float


class WatchedProcess:
    """A command in its own session. Its output, cut after `LOG_BYTES`, goes to a log; breaking a limit kills it.

    `broken` is a line on the limit that it broke, else None. `close` kills it and all that it has started. Raise
    HarnessError if the log cannot be written.
    """

    def __init__(self, command: Sequence[object], log_path: Path | str, limits: Limits, **options: Any):
        self.log_path, self.limits = Path(log_path), limits
        self.broken: str | None = None
        self.too_slow = False
        with writing(self.log_path):
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.log_path, "wb", buffering=0)
        self.family: dict[
            tuple[int, float], psutil.Process
        ] = {}  # every descendant ever seen, by pid and time of birth: it may leave its group, not this list
        self.process = start_process(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        self._deadline = time.monotonic() + limits.seconds
        self._task: Task | None = None
        self._reader = threading.Thread(target=_keep_beginning, args=(self.process.stdout, log), daemon=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._reader.start()
        self._watcher.start()

    @contextlib.contextmanager
    def task(self, what: str, seconds: float | None = None) -> Iterator[None]:
        """Tell the user now and then what the block waits for. Kill the command if it takes more than `seconds`.

        In that case, set `too_slow` in addition to `broken`.
        """
        now = time.monotonic()
        self._task = Task(what, now, now + seconds if seconds else math.inf, now + TOLD_AFTER_S)
        try:
            yield
        finally:
            self._task = None

    def descendants(self) -> list[psutil.Process]:
        """Return the processes that descend from the command, as psutil.Process, and remember them."""
        try:
            children = descendants_of(self.process.pid)
        except psutil.Error:
            children = []
        for child in children:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                self.family[child.pid, child.create_time()] = child
        return children

    def processes(self) -> list[psutil.Process]:
        """Return the command's process and every descendant ever seen, ended or not."""
        self.descendants()
        own = []
        with contextlib.suppress(psutil.NoSuchProcess):
            own.append(psutil.Process(self.process.pid))
        return [*own, *self.family.values()]

    def close(self) -> None:
        """Kill the command and everything that it has started, as far as it was seen."""
        self.descendants()
        self._kill()
        self.process.wait()
        self._watcher.join(timeout=5)
        self._reader.join(timeout=5)  # an escaped process may hold the pipe open; do not wait for it

    def end_by_itself(self) -> None:
        """Give a command that is about to end a moment to do so, so that its own reason counts; then close."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=ENDING_S)
        self.close()

    def reason(self) -> str | None:
        """Return why the command, which must have ended, failed, or None if it ended with status 0."""
        if self.broken:
            return self.broken
        status = self.process.returncode
        number = -status if status < 0 else status - 128  # as a shell or the sandbox reports it
        if number in {*signal.Signals}:
            return f"killed by {signal.Signals(number).name}"
        if status < 0:
            return f"killed by signal {number}"
        return (_last_line(self.log_path) or f"ended with status {status}") if status else None

    def _watch(self) -> None:
        while self.process.poll() is None:
            self._tell()
            self.broken = self._broken_limit()
            if self.broken:
                self._kill()
                return
            time.sleep(POLL_S)

    def _tell(self) -> None:
        """Tell the user what the task waits for, less and less often."""
        task, now = self._task, time.monotonic()
        if task and now >= task.tell_at_s:
            left = time_words(min(task.deadline_s, self._deadline) - now)
            waited = time_words(now - task.since_s)
            tqdm.write(f"{self.log_path.stem}: waiting {task.what} since {waited}; it may take {left} more")
            task.tell_at_s = now + (now - task.since_s)

    def _broken_limit(self) -> str | None:
        limits, task = self.limits, self._task
        if task and time.monotonic() > task.deadline_s:
            self.too_slow = True
            return f"took more than {task.deadline_s - task.since_s:g} s {task.what} and was killed"
        if time.monotonic() > self._deadline:
            return f"did not end within {limits.seconds:g} s and was killed"
        family = self.descendants()
        if len(family) > limits.processes:
            return f"started more than {limits.processes} processes and was killed"
        total = 0
        for pid in (self.process.pid, *(member.pid for member in family)):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                total += psutil.Process(pid).memory_info().rss
        if total > limits.memory_bytes:
            return f"took more than {limits.memory_bytes / 2**30:.1f} GiB of memory and was killed"
        return None

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        for member in list(self.family.values()):
            with contextlib.suppress(psutil.Error):  # psutil notices if another process has its pid by now
                member.kill()


def descendants_of(pid: int) -> list[psutil.Process]:
    """Return the descendants of a process, generation by generation.

    To find them, psutil reads every process of the machine, which takes as long as a pass of a small network. Linux
    lists the children of each thread instead. Raise psutil.NoSuchProcess.
    """
    if not CHILDREN_ARE_TOLD:
        return psutil.Process(pid).children(recursive=True)
    found, waiting = [], [pid]
    for parent in waiting:  # the list grows meanwhile
        with contextlib.suppress(OSError):  # the process ended meanwhile
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):  # the thread did
                    waiting += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    for child in waiting[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(child))
    return found


def run_isolated(command: Sequence[str], log_path: Path, limits: Limits | None = None, **options: Any) -> str | None:
    """Run a command. Return None if it ended with status 0, else a one-line reason. Kill all that it has started."""
    watched = WatchedProcess(command, log_path, limits or Limits(), **options)
    try:
        watched.process.wait()
    finally:
        watched.close()
    return watched.reason()


def _keep_beginning(stream: io.BufferedReader, file: IO[bytes]) -> None:
    """Copy a stream to a file up to `LOG_BYTES`; read on without keeping, so that the writer never blocks."""
    room = LOG_BYTES
    with file:
        while chunk := stream.read1(1 << 16):
            try:
                room -= file.write(chunk[:room])
            except OSError:  # a full disk is not the command's fault
                room = 0


def _last_line(path: Path) -> str:
    """Return the last line of a log without its "error: ", with bytes that are not text escaped."""
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines()
    return one_line(lines[-1].removeprefix("error: "), 300) if lines else ""
