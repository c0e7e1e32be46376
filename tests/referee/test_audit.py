"""utils/referee/audit.py: a model that fakes a figure gets a finding beside it; benchmarks/audit tries many more."""

import json

import pytest

from tests.conftest import write_pairs

QUICK = ("--device", "cpu", "--runs", 2, "--warmup", 1, "--repeats", 3)
SLOWLY = "time.sleep(0.02)"  # so that a pass takes time


@pytest.fixture
def audited(command, stranger, tmp_path):
    """Measures a stranger's model; gives its record."""
    data = write_pairs(tmp_path / "data", list("abc"), size=(128, 160))

    def run(*arguments, **changes):
        result = command("eval.py", *QUICK, "--data_dir", data, *arguments, *stranger(**changes), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / "results" / "records.json").read_text())["models"]["Net"]

    return run


def test_honest_stranger_is_clean(audited):
    audit = audited()["audit"]
    assert audit["findings"] == []
    assert audit["figures"]["seen_macs"] == 3 * 48 * 9 * 256**2
    assert audit["figures"]["mirrored_db"] == pytest.approx(0, abs=0.5)


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
        ["0.08 GFLOP seen by torch's dispatcher, 0.00 counted"],
    ),
    "less at the size that is counted": (
        {"forward": "if x.shape[2:] == (256, 256): return F.interpolate(x, scale_factor=4)"},
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
    "a process of its own": (
        {"top": "import subprocess\nsubprocess.Popen(['sleep', '60'])"},
        ["of its own"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHEATS)
def test_cheat_is_named_beside_its_figures(audited, kind):
    changes, parts = CHEATS[kind]
    record = audited(**changes)
    for part in parts:
        assert any(part in finding for finding in record["audit"]["findings"]), record["audit"]["findings"]
    assert record["complexity"]["params"] == 3 * 48 * 9 + 48


def test_judges_clock_replaces_a_false_one(audited):
    record = audited(top="real = time.perf_counter\ntime.perf_counter = lambda: real() / 1e6", forward=SLOWLY)
    assert record["runtime"]["clock"].startswith("the judge's")
    assert all(runtime_ms > 1 for run in record["runtime"]["runs"] for runtime_ms in run)
    assert record["runtime"]["steady"]["median_ms"] > 1


def test_tensor_that_computes_later_is_no_output(command, stranger, pairs, tmp_path):
    words = stranger(
        top="class Lazy(torch.Tensor): pass", forward="return F.interpolate(x, scale_factor=4).as_subclass(Lazy)"
    )
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, cwd=tmp_path)
    assert result.returncode == 2
    assert "output is Lazy for an LR image of 24 x 16" in result.stderr


def test_answer_out_of_turn_ends_the_row(command, stranger, pairs, tmp_path):
    frames = (
        "frame = sys._getframe()\n        while 'channel' not in frame.f_locals: frame = frame.f_back\n"
        "        frame.f_locals['channel'].send({'number': 0, 'answer': None})"
    )
    result = command("eval.py", *QUICK, "--data_dir", pairs, *stranger(forward=frames), cwd=tmp_path)
    assert result.returncode == 2
    assert "answers out of turn" in result.stderr
