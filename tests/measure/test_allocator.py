"""utils/measure/allocator.py: memory that was freed is there for the next array, without asking the kernel again."""

import subprocess
import sys

from utils.files import ROOT

FAULTS = """
import resource, sys, torch
from utils.measure.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # the heap takes some arrays to find its places
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word):
    run = subprocess.run([sys.executable, "-c", FAULTS, word], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_freed_memory_is_kept():
    assert 10 * page_faults("kept") < page_faults("given back")
