"""utils/isolation/audit.py: a model that fakes a figure gets a finding beside it; benchmarks/audit tries many more."""

import json
import math
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import network_weights, photograph, record, stored, write_pairs
from utils.data.datasets import open_dataset
from utils.data.images import bicubic_downscale, write_png
from utils.errors import HarnessError
from utils.isolation.answers import WatchAnswer
from utils.isolation.audit import Auditor, Timing
from utils.isolation.sandbox import Sandbox
from utils.measure.runtime import Pass
from utils.record import Waiting, WeightsInfo

SOME_PASSES = ("--device", "cpu", "--runs", 2, "--warmup", 1, "--repeats", 3)
SLOWLY = "time.sleep(0.02)"  # so that a pass takes time


@pytest.fixture
def audited(command, submission, tmp_path):
    """Measures an untrusted model's model; gives its record."""
    data = write_pairs(tmp_path / "data", list("abc"), size=(128, 160))

    def run(**changes):
        result = command("eval.py", *SOME_PASSES, "--data_dir", data, *submission(**changes), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return stored(tmp_path / "results")["Net"]

    return run


def test_honest_submission_is_clean(audited):
    audit = audited()["audit"]
    assert audit["findings"] == []
    assert audit["busy"] == {
        "share": 1,
        "others_cores": 1,
    }  # tests/conftest.py says so: their times, which are real, may be anything
    assert audit["figures"]["seen_macs"] == 3 * 48 * 9 * 256**2
    assert audit["figures"]["mirrored_db"] == pytest.approx(0, abs=0.5)


PADDED = """p = F.pad(x, (0, -x.shape[3] % {window}, 0, -x.shape[2] % {window}))
        sr = F.interpolate(p, scale_factor=4, mode="bicubic") + self.up(self.conv(p))
        return sr[:, :, : 4 * x.shape[2], : 4 * x.shape[3]]"""


@pytest.mark.parametrize("window", [16, 24, 64])
def test_padding_to_windows_is_no_finding(audited, window):
    record = audited(forward=PADDED.format(window=window))
    assert record["audit"]["findings"] == []
    figures = record["audit"]["figures"]  # of images of 40 x 32
    assert figures["seen_macs_largest"] == 3 * 48 * 9 * (-(-40 // window) * -(-32 // window)) * window**2


CHEATS = {
    "a slow clock": (
        {"top": "real = time.perf_counter\ntime.perf_counter = lambda: real() / 100", "forward": SLOWLY},
        ["its clock says", "changes in its process: clocks"],
    ),
    "outputs kept by input": (
        {
            "top": "kept = {}",
            "forward": "key = x.numpy().tobytes()\n"
            "        if key in kept and not torch.jit.is_tracing(): return kept[key]\n"
            f"        {SLOWLY}; kept[key] = F.interpolate(x, scale_factor=4); return kept[key]",
        },
        ["for a seen image"],
    ),
    "work in NumPy": (
        {"top": "import numpy", "forward": "numpy.random.rand(900, 900) @ numpy.random.rand(900, 900)"},
        ["outside of torch's operators"],
    ),
    "less where it is traced": (
        {"forward": "if torch.jit.is_tracing(): return F.interpolate(x, scale_factor=4)"},
        ["0.08 GFLOP seen by torch's dispatcher, 0.00 in a trace"],
    ),
    "less at the size that is counted": (
        {"forward": "if x.shape[2:] == (256, 256): return F.interpolate(x, scale_factor=4)"},
        ["MFLOP a pixel on 256 x 256"],
    ),
    "less at sizes that windows divide": (
        {"forward": "if x.shape[2] % 64 == x.shape[3] % 64 == 0: return F.interpolate(x, scale_factor=4)"},
        ["MFLOP a pixel on 256 x 256"],
    ),
    "an output that depends on nothing": (
        {"forward": "return torch.full((1, 3, 4 * x.shape[2], 4 * x.shape[3]), 0.5)"},
        ["a changed image gives the same"],
    ),
    "another output when an image comes again": (
        {"forward": "self.n = getattr(self, 'n', 0) + 1; return F.interpolate(x, scale_factor=4) + 0.05 * self.n"},
        ["another output for an image"],
    ),
    "a separate process": (
        {"top": "import subprocess\nsubprocess.Popen(['sleep', '60'])"},
        ["started 1 process"],
    ),
}  # fmt: skip


SLOW = ("less at sizes that windows divide", "an output that depends on nothing", "outputs kept by input")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in CHEATS])
def test_cheat_is_named_beside_its_figures(audited, kind):
    changes, parts = CHEATS[kind]
    record = audited(**changes)
    for part in parts:
        assert any(part in finding for finding in record["audit"]["findings"]), record["audit"]["findings"]
    assert record["complexity"]["params"] == 3 * 48 * 9 + 48


@pytest.mark.usefixtures("quiet")
def test_hosts_clock_replaces_a_false_one(audited):
    record = audited(top="real = time.perf_counter\ntime.perf_counter = lambda: real() / 1e6", forward=SLOWLY)
    assert all(runtime_ms > 1 for run in record["runtime"]["host_runs"] for runtime_ms in run)
    assert record["runtime"]["host_steady"]["median_ms"] > 1


def test_tensor_that_computes_later_is_no_output(command, submission, pairs, tmp_path):
    words = submission(
        top="class Lazy(torch.Tensor): pass", forward="return F.interpolate(x, scale_factor=4).as_subclass(Lazy)"
    )
    result = command("eval.py", *SOME_PASSES, "--data_dir", pairs, *words, cwd=tmp_path)
    assert result.returncode == 2
    assert "output is Lazy for an LR image of 24 x 16" in result.stderr


def test_answer_out_of_turn_ends_the_row(command, submission, pairs, tmp_path):
    frames = (
        "frame = sys._getframe()\n        while 'channel' not in frame.f_locals: frame = frame.f_back\n"
        "        frame.f_locals['channel'].send({'number': 0, 'answer': None})"
    )
    result = command("eval.py", *SOME_PASSES, "--data_dir", pairs, *submission(forward=frames), cwd=tmp_path)
    assert result.returncode == 2
    assert "sent a reply to another request" in result.stderr


class FakeWorker:
    """Upscales in a time that the test tells: `times(pass's number, lr)` gives what it reports and the host sees."""

    entry = types.SimpleNamespace(data_range=1.0)
    weights = WeightsInfo(sha256="sha", provenance="")
    sandbox, notes, findings = Sandbox(False, "none"), (), ()

    def __init__(self, times, answer, waited, outside_ms):
        self.times, self.answer, self.timings = times, answer, []
        self.waited, self.outside_ms = waited, outside_ms

    def forward(self, lr):
        self.timings.append(Timing(*self.times(len(self.timings), lr)))
        return Pass(self.answer(F.interpolate(lr, scale_factor=4)), self.timings[-1].reported_ms)

    def ask(self, do):
        assert do == "changed"
        return []

    def watch(self, height=256, width=256):
        macs = 1000 * height * width
        return WatchAnswer(macs=macs, operators_ms=10.0, outside_ms=self.outside_ms, plain_ms=10.0)

    def waiting(self):
        return Waiting(self.waited, self.waited)

    def other_processes(self):
        return 0

    def check_last(self):
        pass


RUNS, WARMUP, REPEATS, NAMES = 2, 1, 5, list("abc")


@pytest.fixture
def findings(tmp_path):
    """Audits a FakeWorker after the passes of a measurement; gives the findings and its record."""
    dataset = open_dataset(write_pairs(tmp_path / "data", NAMES, size=(64, 64)))

    def run(times, answer=lambda sr: sr, waited=0.0, outside_ms=0.1, tile=None, parts=1, before=None):
        worker = FakeWorker(times, answer, waited, outside_ms)
        passes = [(run, image) for run in range(RUNS) for image in range(len(NAMES))]
        for _ in range(len(passes) + WARMUP + REPEATS):
            worker.timings.append(Timing(*times(len(worker.timings), None)))
        reported = [timing.reported_ms for timing in worker.timings]
        steady = dict.fromkeys(("lr_height", "lr_width", "p10_ms", "p90_ms"), 1)
        steady |= {"warmup": WARMUP, "repeats": REPEATS, "median_ms": float(np.median(reported[7:]))}
        measured = record(
            complexity={"flops": 1000 * 256 * 256, "params": 1000},
            images={"psnr": [20.0] * len(NAMES), "lr_pixels": [256] * len(NAMES), "tile": [tile] * len(NAMES)},
            runtime={"runs": [reported[:3], reported[3:6]], "steady": steady, "parts": parts},
        )
        if before:
            before(measured)
        audit = Auditor(worker, measured, dataset, np.random.default_rng(0)).result()
        json.dumps(audit.figures, allow_nan=False)
        assert (audit.busy is not None) == (waited > 0)
        return audit.findings, measured.runtime

    return run


def test_clocks_that_agree_within_a_millisecond_are_clean(findings):
    assert findings(lambda number, lr: (10.0, 10.9))[0] == []


def test_answers_that_come_late_on_a_busy_machine_are_no_lie(findings):
    assert findings(lambda number, lr: (1.0, 1.2 if number % 4 == 3 else 3.5))[0] == []


@pytest.mark.parametrize(("value", "words"), [(math.nan, "nan"), (math.inf, "inf")])
def test_new_image_that_gives_no_numbers_is_named(findings, value, words):
    seen = []

    def answer(sr):
        seen.append(sr)
        return torch.full_like(sr, value) if len(seen) % 2 == 0 else sr  # seen and new images take turns

    found, _ = findings(lambda number, lr: (10.0, 10.0), answer)
    assert found[0] == f"an image changed by one grey level gives an output {words} grey levels away"


def test_slow_clock_is_named_and_the_hosts_figures_stand(findings):
    found, runtime = findings(lambda number, lr: (1.0, 10.0 + number % 2))
    assert found == ["its clock says 1.00 ms a pass, the host's, shown here, 10.50 ms"]
    assert runtime.runs == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]  # as reported, and beside it:
    assert runtime.host_runs == runtime.trusted_runs == [[10.0, 11.0, 10.0], [11.0, 10.0, 11.0]]
    assert runtime.trusted_steady.median_ms == 11.0


def test_clock_that_lies_in_the_measurement_alone_is_named(findings):
    found, _ = findings(lambda number, lr: (1.0 if lr is None else 10.0, 10.0))
    assert found[0] == "its clock says 1.00 ms a pass, the host's, shown here, 10.00 ms"


def test_clock_that_lies_in_the_first_run_alone_is_named(findings):
    found, _ = findings(lambda number, lr: (10.0, 100.0 if number < len(NAMES) else 10.0))
    assert found == ["its clock says 10.00 ms a pass, the host's, shown here, 10.00 ms"]


def test_clock_that_lies_on_some_short_passes_is_named(findings):
    """The median of its times is true, and all of them are within the tolerance of one pass."""
    found, _ = findings(lambda number, lr: (0.01 if lr is None and number % 3 == 0 else 4.0, 4.0))
    assert found[0] == "its clock says 4.00 ms a pass, the host's, shown here, 4.00 ms"


def test_clock_that_lied_in_an_earlier_process_is_named(findings):
    def times(number, lr):
        return 20.0, 20.0

    def lied(audited):
        audited.runtime.runs[0] = [0.01] * len(NAMES)

    assert findings(times, parts=2)[0] == []
    assert findings(times, parts=2, before=lied)[0][0].startswith("its clock says")


def test_images_that_took_tiles_are_not_counted_on_as_a_whole(findings, monkeypatch):
    real = FakeWorker.watch

    def watch(worker, height=256, width=256):
        if (height, width) != (256, 256):
            raise HarnessError("no memory")
        return real(worker)

    monkeypatch.setattr(FakeWorker, "watch", watch)
    assert findings(lambda number, lr: (10.0, 10.0), tile=64)[0] == []
    assert findings(lambda number, lr: (10.0, 10.0))[0] == ["fails in the audit (no memory)"]


def test_outputs_kept_by_input_are_named(findings):
    kept = set()

    def times(number, lr):
        key = number % 3 if lr is None else lr.numpy().tobytes()
        milliseconds = 1.0 if key in kept and number not in (6, 7, 8, 9, 10, 11) else 10.0  # steady inputs are new
        kept.add(key)
        return milliseconds, milliseconds

    assert findings(times)[0] == [
        "takes 1.00 ms for a seen image, 10.00 ms for a new one",
        "repeated runs took 1.00 ms where a new input takes 10.00 ms",
    ]


def test_one_slow_pass_of_a_busy_machine_is_no_finding(findings):
    assert findings(lambda number, lr: 2 * (80.0 if number == 14 else 10.0,))[0] == []


# Each is accused on an idle machine, as the tests above show, and was on busy ones without any fault.
LATE = {
    "answers": (lambda number, lr: (10.0, 15.0), 0.1),
    "new images": (lambda number, lr: 2 * (10.0 if lr is None or number % 2 == 0 else 20.0,), 0.1),
    "operators": (lambda number, lr: (10.0, 10.0), 9.0),
}


@pytest.mark.parametrize("kind", LATE)
def test_times_of_a_busy_machine_accuse_nobody_and_stand_as_reported(findings, kind):
    times, outside_ms = LATE[kind]
    assert findings(times, outside_ms=outside_ms)[0] != []
    found, runtime = findings(times, outside_ms=outside_ms, waited=0.3)
    assert found == []
    assert runtime.host_runs is None


def test_report_of_more_time_than_the_host_saw_is_no_fault_and_stays(findings):
    found, runtime = findings(lambda number, lr: (10.0, 0.0))
    assert not any("clock" in finding for finding in found)
    assert runtime.trusted_runs == [[10.0, 10.0, 10.0], [10.0, 10.0, 10.0]]


def test_passes_shorter_than_their_transfers_are_not_compared(findings):
    found, _ = findings(lambda number, lr: (1.0, 0.0))
    assert found == []


@pytest.mark.parametrize("kind", ["flat", "ramp"])
def test_images_that_bicubic_restores_accuse_nobody(command, submission, tmp_path, kind):
    """Honest bicubic upscaling of what it restores exactly, or nearly."""
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None], (128, 160, 3))
    hr = np.full((128, 160, 3), 77, np.uint8) if kind == "flat" else np.ascontiguousarray(ramp)
    write_png(tmp_path / "data" / "HR" / "a.png", hr)
    write_png(tmp_path / "data" / "LR" / "ax4.png", bicubic_downscale(hr))
    words = submission(weights={"conv.weight": torch.zeros(48, 3, 3, 3), "conv.bias": torch.zeros(48)})
    result = command("eval.py", *SOME_PASSES, "--data_dir", tmp_path / "data", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert stored(tmp_path / "results")["Net"]["audit"]["findings"] == []


def test_photograph_that_is_restored_as_nothing_can_is_named(command, submission, tmp_path):
    hr = photograph(128, 160)
    write_png(tmp_path / "data" / "HR" / "a.png", hr)
    write_png(tmp_path / "data" / "LR" / "ax4.png", bicubic_downscale(hr))
    weights = {**network_weights(), "answer": torch.from_numpy(hr).permute(2, 0, 1)[None] / 255}
    words = submission(
        weights=weights,
        constructor="self.register_buffer('answer', torch.zeros(1, 3, 128, 160))",
        forward="if x.shape[2:] == (32, 40): return self.answer.clone()",
    )
    command("eval.py", *SOME_PASSES, "--data_dir", tmp_path / "data", *words, cwd=tmp_path)
    found = stored(tmp_path / "results")["Net"]["audit"]["findings"]
    assert any("restores 1 of 1 images as nothing can" in finding for finding in found)
