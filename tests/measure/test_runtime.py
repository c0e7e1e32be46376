"""The runtime and the peak memory: what is timed and how it is summed up; no test asserts a time."""

from itertools import repeat
from types import SimpleNamespace

import pytest
import torch

from utils.measure.memory import cpu_peak_mib
from utils.measure.runtime import measure_steady_runtime, timed_forward
from utils.zoo.registry import find_entry, read_registry


class Sleeper(torch.nn.Module):
    """Lets a fake clock run on by the next of its durations [ms]."""

    def __init__(self, durations, clock):
        super().__init__()
        self.durations, self.clock = iter(durations), clock

    def forward(self, x):
        self.clock[0] += next(self.durations) / 1000
        return x


def fake_clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("utils.measure.runtime.time.perf_counter", lambda: clock[0])
    return clock


def test_forward_pass_alone_is_timed(monkeypatch):
    clock = fake_clock(monkeypatch)
    output, runtime_ms, _ = timed_forward(Sleeper([250], clock), torch.ones(1, 3, 2, 2))
    assert abs(runtime_ms - 250) < 1e-9
    assert torch.equal(output, torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(("elsewhere_ms", "expected_ms"), [(0.0, 3.0), (0.01, 3.0), (5.0, 8.0)])
def test_work_that_no_event_waits_for_counts(monkeypatch, elsewhere_ms, expected_ms):
    """A GPU that is a clock: the stream of the events is done after 3 ms, all of it `elsewhere_ms` later."""
    clock = fake_clock(monkeypatch)
    stream = SimpleNamespace(done=0.0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = stream.done

        def synchronize(self):
            clock[0] = max(clock[0], self.at)

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    def model(lr):
        stream.done += 0.003
        return lr

    def synchronize(device):
        clock[0] = max(clock[0], stream.done + elsewhere_ms / 1000)

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    _, runtime_ms, _ = timed_forward(model, SimpleNamespace(device=torch.device("cuda")))
    assert runtime_ms == pytest.approx(expected_ms)


def test_steady_runtime_leaves_the_warm_up_out(monkeypatch):
    clock = fake_clock(monkeypatch)
    model = Sleeper([9000, 9000, 10, 20, 30, 40, 50], clock)
    steady = measure_steady_runtime(
        lambda lr: timed_forward(model, lr).runtime_ms, repeat(torch.ones(1, 3, 2, 5)), warmup=2, repeats=5
    )
    assert (steady.lr_height, steady.lr_width, steady.warmup, steady.repeats) == (2, 5, 2, 5)
    assert [round(value, 6) for value in (steady.p10_ms, steady.median_ms, steady.p90_ms)] == [14, 30, 46]


@pytest.mark.real_process
@pytest.mark.slow
def test_cpu_memory_grows_with_the_image():
    entry = find_entry(7, read_registry())
    small, large = cpu_peak_mib(entry, (1, 3, 32, 32)), cpu_peak_mib(entry, (1, 3, 256, 256))
    # Nine feature maps of 48 channels are alive where the last block ends; 12 MiB each at 256 x 256.
    assert large > small + 48
    assert large < small + 12 * 120  # of the 120 maps that are ever made
