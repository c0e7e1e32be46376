"""The load of the machine by other work: how long threads waited for a core, and how many cores others used.

Both come from the kernel's accounts (Linux). Where the kernel keeps none, both are 0.
"""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def waited_s(pid: int | str = "self", thread: int | None = None) -> float:
    """Return how long a process's threads, or one of them, have been ready to run but waited for a core [s].

    Source: the second number of /proc/PID/task/TID/schedstat, in nanoseconds.
    """
    total = 0
    with contextlib.suppress(OSError, ValueError):  # another system, or a thread that has just ended
        tasks = Path(f"/proc/{pid}/task")
        for task in [tasks / str(thread)] if thread else list(tasks.iterdir()):
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


@dataclass(frozen=True)
class CoreUse:
    """The core time used up to `at_s` [s]: by all on the cores open to this process, and by its own processes."""

    at_s: float
    all_s: float
    own_s: float

    def others_since(self, earlier: "CoreUse") -> float:
        """Return how many cores other processes or virtual machines have used on average since `earlier`."""
        elapsed_s = self.at_s - earlier.at_s
        others_s = (self.all_s - earlier.all_s) - (self.own_s - earlier.own_s)
        return max(others_s / elapsed_s, 0.0) if elapsed_s > 0 else 0.0


def used_s(process: psutil.Process) -> float:
    """Return the core time that a process and its ended children have used [s], or 0 if the process is gone."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system
    return 0.0


def core_use(processes: Iterable[psutil.Process], ended_s: float = 0.0) -> CoreUse:
    """Return the current CoreUse. Its own time is that of this process and `processes`, plus `ended_s` of ended ones.

    Source: /proc/stat, whose numbers for each core are ticks: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    own_s = ended_s + sum(os.times()[:2]) + sum(map(used_s, processes))
    ticks = 0
    with contextlib.suppress(OSError, ValueError):
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        for line in Path("/proc/stat").read_text().splitlines():
            name, *numbers = line.split()
            if name in cores:
                user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, numbers)
                ticks += user + nice + system + irq + softirq + steal
    return CoreUse(time.monotonic(), ticks / TICKS_PER_S, own_s)
