"""utils/isolation/host.py: what the host measures of a worker from outside."""

import math
from pathlib import Path

import pytest
import torch

from utils.data.datasets import open_dataset
from utils.errors import HarnessError
from utils.evaluate.measurement import MeasurementPlan, measure
from utils.isolation.host import IsolatedRunner, are_the_same
from utils.measure.memory import cpu_peak_mib
from utils.zoo.registry import entry_from_file, find_entry, read_registry, with_checkpoint


@pytest.mark.slow
@pytest.mark.real_process
def test_memory_is_what_the_network_takes(tmp_path):
    entry, shape = find_entry(126, read_registry()), (1, 3, 64, 64)
    here_mib = cpu_peak_mib(entry, shape)  # with as many threads as the network gets there
    with IsolatedRunner(entry, torch.device("cpu"), tmp_path / "log") as worker:
        assert worker.cpu_peak_mib(shape) == pytest.approx(here_mib, abs=1)


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ([0.1, math.nan, math.inf], True),
        ([0.103, math.nan, math.inf], True),
        ([0.105, math.nan, math.inf], False),
        ([math.nan, math.nan, math.inf], False),
        ([0.1, 0.0, math.inf], False),
        ([0.1, math.nan, -math.inf], False),
    ],
)
def test_values_that_are_no_numbers_are_compared_too(now, same):
    before = torch.tensor([0.1, math.nan, math.inf])
    assert are_the_same(torch.tensor(now), before, 0.004) == same


def test_transfers_grow_with_the_image(tmp_path):
    with IsolatedRunner(find_entry(126, read_registry()), torch.device("cpu"), tmp_path / "log") as worker:
        pixels, seconds = worker.transfers
        assert worker.transfer_s(1, pixels[0]) == seconds[0]
        assert worker.transfer_s(1, pixels[-1]) == seconds[-1]
        assert worker.transfer_s(2, pixels[-1]) == 2 * seconds[-1]
        middle = (pixels[1] + pixels[2]) // 2
        assert worker.transfer_s(1, middle) == pytest.approx((seconds[1] + seconds[2]) / 2)


@pytest.mark.real_process
@pytest.mark.slow
def test_freed_memory_is_kept_where_a_pass_is_watched(submission, tmp_path):
    _, file, _, weights = submission(forward="x.repeat(1, 80, 1, 1)")

    def page_faults(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

    with IsolatedRunner(entry_from_file(file, "Net", [], weights), "cpu", tmp_path / "log") as worker:
        for _ in range(6):  # the heap takes some arrays to find its places
            worker.ask("watch")
        before = page_faults(worker.pid)
        worker.ask("watch")  # three passes, each with an array of
        pages = 3 * 80 * 256**2 * 4 / 4096
        assert page_faults(worker.pid) - before < 2 * pages


@pytest.mark.slow
@pytest.mark.real_process
def test_host_leaves_the_threads_to_the_network(submission, pairs, tmp_path):
    _, file, _, weights = submission(constructor="print('has threads:', torch.get_num_threads())")
    entry, log = entry_from_file(file, "Net", [], weights), tmp_path / "log"
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with IsolatedRunner(entry, "cpu", log) as worker:
            assert torch.get_num_threads() == 1
            record = measure(worker, open_dataset(pairs), MeasurementPlan(runs=1, warmup=0, repeats=1))
        assert record.environment.threads == torch.get_num_threads() == 3
        absent = with_checkpoint(entry, tmp_path / "none")
        with pytest.raises(HarnessError, match="no such checkpoint"), IsolatedRunner(absent, "cpu", log):
            pass
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    logs = log.read_text(), log.with_suffix(".memory.log").read_text()
    assert [text.count("has threads: 3") for text in logs] == [1, 1]
