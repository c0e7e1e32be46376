"""How long a process's threads waited for a processor core, by the kernel's own account: was the machine busy?"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoreTime:
    """Seconds that threads ran on a core, and seconds that they were ready to run but waited for one."""

    ran_s: float = 0.0
    waited_s: float = 0.0

    def __add__(self, other: "CoreTime") -> "CoreTime":
        return CoreTime(self.ran_s + other.ran_s, self.waited_s + other.waited_s)

    def since(self, earlier: "CoreTime") -> "CoreTime":
        """Return what has been added since; a thread that has ended meanwhile took its share with it."""
        return CoreTime(max(self.ran_s - earlier.ran_s, 0.0), max(self.waited_s - earlier.waited_s, 0.0))

    def share_waited(self, elapsed_s: float) -> float:
        """Return the share of `elapsed_s` that was waited because others had the cores.

        A process that fills all cores by itself waits for its own threads, so for nobody else: 0.
        """
        if elapsed_s <= 0 or self.ran_s > 0.9 * len(os.sched_getaffinity(0)) * elapsed_s:
            return 0.0
        return min(self.waited_s / elapsed_s, 1.0)  # several threads may wait at once


def core_time(pid: int | str = "self", thread: int | None = None) -> CoreTime:
    """Return the CoreTime of a process's threads, or of one of them, until now; nothing where the system does not tell.

    Source: /proc/PID/task/TID/schedstat of Linux, whose first two numbers are these, in nanoseconds.
    """
    total = CoreTime()
    try:
        tasks = Path(f"/proc/{pid}/task")
        for task in [tasks / str(thread)] if thread else list(tasks.iterdir()):
            ran, waited, *_ = (task / "schedstat").read_text().split()
            total += CoreTime(int(ran) / 1e9, int(waited) / 1e9)
    except (OSError, ValueError):  # another system, or a thread that has just ended
        pass
    return total
