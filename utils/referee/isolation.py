"""Running a command that may do anything, hang, crash, eat memory or print without end, in a process of its own."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil

LOG_BYTES = 1 << 20  # of a command's output that are kept
POLL_S = 0.1


def run_isolated(command, log_path, time_limit_s, memory_limit_bytes):
    """Run a command in a process group of its own; return None if it ended with status 0, else the reason in a line.

    Its output, stdout and stderr together, goes to `log_path`, cut after `LOG_BYTES`. When it takes longer than
    `time_limit_s`, or all its processes together hold more than `memory_limit_bytes`, it is killed. Whatever it leaves
    running in its group is killed too.
    """
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reader = threading.Thread(target=_keep_beginning, args=(process.stdout, log_path), daemon=True)
    reader.start()
    try:
        reason = _watch(process, time.monotonic() + time_limit_s, memory_limit_bytes)
    finally:
        _kill_group(process)
        process.wait()
    reader.join(timeout=5)  # a process that left the group may hold the pipe open; it is not waited for
    if reason:
        return reason.format(time_limit_s=time_limit_s)
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}"
    if process.returncode:
        return _last_line(log_path) or f"ended with status {process.returncode}"
    return None


def _watch(process, deadline, memory_limit_bytes):
    """Wait for the end, or return the reason to kill it."""
    while process.poll() is None:
        if time.monotonic() > deadline:
            return "did not end within {time_limit_s:g} s and was killed"
        if _resident_bytes(process.pid) > memory_limit_bytes:
            return f"took more than {memory_limit_bytes / 2**30:.1f} GiB of memory and was killed"
        time.sleep(POLL_S)
    return None


def _resident_bytes(pid):
    """Resident memory of a process and all that descend from it."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    return total


def _kill_group(process):
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)


def _keep_beginning(stream, path):
    """Copy a stream to a file up to `LOG_BYTES`; read on without keeping, so that the writer never blocks."""
    kept = 0
    with open(path, "wb") as file:
        while chunk := stream.read1(1 << 16):
            if kept < LOG_BYTES:
                file.write(chunk[: LOG_BYTES - kept])
                file.flush()
                kept += len(chunk)


def _last_line(path):
    """The last line of a log, without its "error: "; bytes that are no text are shown as such."""
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines()
    return " ".join(lines[-1].removeprefix("error: ").split())[:300] if lines else ""
