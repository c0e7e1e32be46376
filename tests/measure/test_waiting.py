"""utils/measure/waiting.py: a machine is busy where passes wait for cores that others have."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from utils.measure.waiting import CoreUse, core_use, waited_s
from utils.record import Waiting


@pytest.mark.parametrize(
    ("share", "others_cores", "expected"),
    [(0.4, 1.0, True), (0.4, 0.0, False), (0.0, 1.0, False)],
    ids=["waits for others", "waits for its own threads", "others work elsewhere"],
)
def test_times_say_nothing_where_passes_wait_for_others(share, others_cores, expected):
    assert Waiting(share, others_cores).is_too_much is expected


def test_cores_of_others_are_what_is_used_less_what_is_used_here():
    """In 10 s two cores were used for 15 s together, 5 of them here."""
    assert CoreUse(110.0, 65.0, 8.0).others_since(CoreUse(100.0, 50.0, 3.0)) == 1.0
    assert CoreUse(100.0, 50.0, 3.0).others_since(CoreUse(100.0, 50.0, 3.0)) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="an account that Linux keeps")
def test_threads_that_share_a_core_wait_for_it():
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", one_core]) for _ in range(2)]
    try:
        processes = [psutil.Process(loop.pid) for loop in loops]
        before = core_use(processes)
        while not all(waited_s(loop.pid) > 0.05 for loop in loops):
            time.sleep(0.01)
        after = core_use(processes)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert after.own_s > before.own_s
    assert after.all_s > before.all_s


def test_process_that_is_gone_has_waited_for_nothing():
    assert waited_s(2**22 + 1) == 0.0
