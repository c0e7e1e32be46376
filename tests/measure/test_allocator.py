"""utils/measure/allocator.py: freed memory is there for the next array, or gone, as the allocator is told."""

import subprocess
import sys

import pytest

from utils.files import ROOT

FAULTS = """
import resource, torch
for _ in range(20):  # the heap takes some arrays to find its places
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
LEFT = """
import psutil, torch
torch.ones(2**22)  # 16 MiB: by itself the allocator keeps arrays up to that from now on
before = psutil.Process().memory_info().rss
arrays = [torch.ones(2**21) for _ in range(20)]
last = torch.ones(1000)  # above them in the heap, which is cut from its end alone
del arrays
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def printed(code, told=""):
    """The number that a fresh process prints whose allocator was `told`, or left as it is."""
    code = f"import utils.measure.allocator as allocator\n{told and f'allocator.{told}()'}\n{code}"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.slow
def test_freed_memory_is_kept():
    assert 10 * printed(FAULTS, "keep_freed_memory") < printed(FAULTS)


@pytest.mark.slow
def test_freed_memory_is_given_back():
    assert printed(LEFT) > 30
    assert printed(LEFT, "give_back_freed_memory") < 10
