"""utils/isolation/process.py: a process that misbehaves is killed with all that it has started, and says why."""

import contextlib
import queue
import re
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from utils.errors import HarnessError
from utils.isolation.process import LOG_BYTES, Limits, WatchedProcess, run_isolated

GIB = 2**30


@pytest.fixture
def run(tmp_path):
    """Runs Python code isolated; gives the reason and the log."""

    def isolated(code, **limits):
        limits = Limits(**{"seconds": 30, "memory_bytes": 4 * GIB} | limits)
        reason = run_isolated([sys.executable, "-c", code], tmp_path / "log", limits)
        return reason, (tmp_path / "log").read_bytes()

    return isolated


def gone(pid):
    """Wait until a process has ended; return whether it does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for _ in range(1000):  # on a busy machine it may take its time
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.1)
        return False
    return True


def test_command_that_ends_well_has_no_reason(run):
    assert run("print('hello')") == (None, b"hello\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('error: x.png: broken')", "x.png: broken"),
        ("raise KeyError('cfg')", "KeyError: 'cfg'"),
        ("import os; os._exit(5)", "ended with status 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import os; os._exit(128 + 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),  # one of those without a name
        (r"import os; os.write(2, b'\xff\xfe\n'); os._exit(1)", r"\xff\xfe"),
    ],
)
def test_failure_is_told_in_a_line(run, code, reason):
    assert run(code)[0] == reason


@pytest.fixture
def waiting(tmp_path):
    """A command that waits until it is closed."""
    watched = WatchedProcess([sys.executable, "-c", "import time; time.sleep(3600)"], tmp_path / "net.log", Limits())
    yield watched
    watched.close()


def test_task_that_takes_too_long_is_killed_and_told_apart(waiting):
    with waiting.task("for a pass on 4 x 3", seconds=0.2):
        waiting.process.wait()
    waiting.close()
    assert waiting.too_slow
    assert waiting.reason() == "took more than 0.2 s for a pass on 4 x 3 and was killed"


def test_user_is_told_what_is_waited_for(waiting, monkeypatch):
    monkeypatch.setattr("utils.isolation.process.TOLD_AFTER_S", 0.0)
    lines = queue.Queue()
    monkeypatch.setattr("utils.isolation.process.tqdm", SimpleNamespace(write=lines.put))
    with waiting.task("for a pass on 4 x 3", seconds=7000):
        line = lines.get()
    assert re.fullmatch(r"net: waiting for a pass on 4 x 3 since \d+ s; it may take \d+ min more", line), line


CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(10**6)'], start_new_session={own_session})
print(child.pid, flush=True)
time.sleep({seconds})
"""


@pytest.mark.parametrize("own_session", [pytest.param(False, marks=pytest.mark.slow), True])
def test_hanging_command_is_killed_with_its_children(run, own_session):
    reason, log = run(CHILD.format(own_session=own_session, seconds=10**6), seconds=4)
    assert reason == "did not end within 4 s and was killed"
    assert gone(int(log))


def test_child_that_outlives_its_parent_in_a_session_of_its_own_is_killed(run):
    reason, log = run(CHILD.format(own_session=True, seconds=0.5))
    assert reason is None
    assert gone(int(log))


def test_memory_is_limited(run):
    reason, _ = run("x = bytearray(600 * 2**20)\nimport time; time.sleep(30)", memory_bytes=GIB / 4)
    assert reason == "took more than 0.2 GiB of memory and was killed"


def test_processes_are_limited(run):
    code = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(30)\ntime.sleep(30)"
    assert run(code, processes=5)[0] == "started more than 5 processes and was killed"


def test_endless_output_is_cut_and_does_not_block(run):
    reason, log = run("while True: print('x' * 1000)", seconds=2)
    assert "did not end" in reason
    assert len(log) == LOG_BYTES


def test_log_on_a_full_disk_does_not_block():
    words = [sys.executable, "-c", "print('x' * 10**6)"]
    assert run_isolated(words, "/dev/full", Limits(seconds=20)) is None


def test_log_that_cannot_be_is_named(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(HarnessError, match=r"logs/a\.log: cannot be written"):
        run_isolated([sys.executable, "-c", ""], tmp_path / "logs" / "a.log")
