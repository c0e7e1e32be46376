"""Fork models' processes from one that has imported torch: this takes 0.1 s each, a new process takes 2 s.

`Workers.start` replaces `subprocess.Popen` for them. They run the code of `utils.worker` in separate processes, but
without a sandbox. Tests of processes and sandboxes are marked `real_process` and start real ones.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import cast

from utils.files import ROOT

MODULE = "utils.worker"


class Workers:
    """The process that forks, started when the first worker is asked for."""

    def __init__(self):
        self.template = None

    def start(self, command, pass_fds=(), env=None, cwd=None, **options):
        """Start a command; one of `utils.worker`'s, with or without a sandbox before it, is forked."""
        if MODULE not in command:
            return subprocess.Popen(command, pass_fds=pass_fds, env=env, cwd=cwd, **options)
        if self.template is None:
            self._open()
        output, its_output = os.pipe()
        status, its_status = os.pipe()
        request = {"env": env, "cwd": str(cwd)}
        with contextlib.suppress(OSError):  # ForkedProcess notices that no answer comes
            socket.send_fds(self.template, [json.dumps(request).encode()], [its_output, its_status, *pass_fds])
        os.close(its_output)
        os.close(its_status)
        return ForkedProcess(output, status)

    def _open(self):
        self.template, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, "-m", "tests.workers", str(its_end.fileno())]
        self.process = subprocess.Popen(words, cwd=ROOT, pass_fds=[its_end.fileno()], env=environment)
        its_end.close()

    def close(self):
        if self.template is not None:
            self.template.close()
            self.process.wait()


class ForkedProcess:
    """The part of `subprocess.Popen` that the project uses, for a process that another one has forked."""

    def __init__(self, output, status):
        self.stdout, self.status = os.fdopen(output, "rb"), os.fdopen(status, "r")
        self.pid = int(self.status.readline())
        self.returncode = None
        self.reading = threading.Lock()  # as Popen has one: a thread that watches asks, too

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if not select.select([self.status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a worker", timeout)
        with self.reading:
            if self.returncode is None:
                self.returncode = int(self.status.readline())
        return self.returncode


def serve(connection):
    """Fork a worker for each request, until the connection closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever watched a worker is not waited for
    while True:
        request, fds, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        if not request:
            return
        if os.fork() == 0:
            connection.close()
            watch(json.loads(request), *fds)
        for fd in fds:
            os.close(fd)


def watch(request, output, status, *fds):
    """Fork the worker, which reports its pid; wait for its end, and report its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        work(request, output, status, fds)
    for fd in (output, *fds):
        os.close(fd)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        os.write(status, f"{ended}\n".encode())
    os._exit(0)


def work(request, output, status, fds):
    """Run in this process what the command would have run."""
    os.setsid()
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["env"] or {})
    os.chdir(request["cwd"])
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = [MODULE, *map(str, fds)]
    del sys.modules[f"{MODULE}.__main__"]  # which the template has imported, and which is run here
    code = 0
    try:
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    from utils.worker.__main__ import Worker
    from utils.worker.channel import Channel

    # Import once, for all workers, what a worker imports when it first counts. One thread, since none survives a fork.
    Worker(cast(Channel, None)).prepare(threads=1, device="cpu", for_memory=False)
    serve(socket.socket(fileno=int(sys.argv[1])))
