"""The code that runs on a GPU only; skipped where there is none."""

import threading

import numpy as np
import pytest
import torch

from models.nanosr_fast import NanoSR_fast
from models.team07_NanoSR import NanoSR_inference
from tests.helpers import RECIPE, SMALL_CUT, stored, write_photographs
from training.data.feed import MappedFeed, PatchSampler, ResidentFeed
from training.graph import GraphedUpdate
from training.loop import Trainer
from training.recipe import load_recipe
from training.setup import set_up
from utils.measure.memory import measure_peak_mib, reset_peak
from utils.measure.runtime import timed_forward
from utils.measure.tiles import SIDES, forward_within_memory

ON_GPU = ("--device", "cuda")
QUICK = (*ON_GPU, "--runs", 1, "--warmup", 1, "--repeats", 1)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def hidden_gpu():
    """None is hidden here."""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "tiny.toml")


def batch(step):
    generator = torch.Generator().manual_seed(step)
    lr = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return lr.cuda(), lr.repeat_interleave(4, 2).repeat_interleave(4, 3).cuda()


def test_graph_trains_as_eager_steps_do(recipe):
    eager, graphed = Trainer(set_up(recipe, "cuda")), Trainer(set_up(recipe, "cuda"))
    replay = GraphedUpdate(graphed)
    for step in range(12):
        expected, actual = eager.update(*batch(step)), replay(*batch(step))
        assert actual[0].item() == pytest.approx(expected[0].item(), rel=1e-3)
    assert graphed.step == eager.step == 12
    for name, weight in eager.average.state_dict().items():
        assert torch.allclose(graphed.average.state_dict()[name], weight, atol=1e-3), name


def test_graph_is_captured_while_threads_take_pinned_memory(recipe):
    trainer, ended, failed = Trainer(set_up(recipe, "cuda")), threading.Event(), []

    def take():
        taken = []  # kept, so that each is asked of the driver
        while not ended.is_set():
            try:
                taken.append(torch.empty(2**16, dtype=torch.uint8).pin_memory())
            except RuntimeError as error:
                failed.append(error)
                return

    replay, thread = GraphedUpdate(trainer), threading.Thread(target=take)
    for step in range(3):
        replay(*batch(step))
    thread.start()
    try:
        losses = [replay(*batch(step))[0].item() for step in range(3, 6)]
    finally:
        ended.set()
        thread.join()
    assert not failed
    assert all(map(np.isfinite, losses))


def test_graph_names_the_first_step_that_was_not_finite(recipe):
    trainer = Trainer(set_up(recipe, "cuda"))
    replay = GraphedUpdate(trainer)
    for step in range(6):
        replay(*batch(step))
    with torch.no_grad():
        trainer.model.conv_cat.bias[0] = float("nan")
    replay(*batch(6))
    replay(*batch(7))
    with pytest.raises(FloatingPointError, match="nan"):
        replay.check()
    assert trainer.step == 6


class Pair:
    """Stands in for prepared sub-images: one of 64 x 96."""

    shapes = np.array([[64, 96]])
    starts = shard_starts = np.array([0])
    hr = (np.random.default_rng(0).integers(0, 256, (64 * 96, 3), dtype=np.uint8),)
    lr = (np.random.default_rng(1).integers(0, 256, (16 * 24, 3), dtype=np.uint8),)

    def shards_of(self, index):
        return 0 * index


@pytest.mark.parametrize(
    ("candidates", "varied"),
    [
        (1, {}),
        (3, {}),
        (3, {"shifts": True}),
        (3, {"negatives": 0.5}),
        (3, {"shifts": True, "negatives": 0.5, "colour_swaps": 0.9}),
    ],
)
def test_feed_on_the_gpu_cuts_what_the_cpu_cuts(candidates, varied):
    plan = PatchSampler(Pair.shapes, seed=3, batch=7, hr_patch=32, candidates=candidates, **varied)
    on_cpu = list(MappedFeed(Pair(), plan, "cpu", 0).batches(0, 3))
    for feed in (ResidentFeed(Pair(), plan, "cuda"), MappedFeed(Pair(), plan, "cuda", 2)):
        for gpu, cpu in zip(feed.batches(0, 3), on_cpu, strict=True):
            assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(gpu, cpu, strict=True))


def test_events_time_a_forward_pass_and_memory_has_a_peak():
    device = torch.device("cuda")
    model = NanoSR_inference().eval().cuda()
    reset_peak(device)
    sr, runtime_ms, _ = timed_forward(model, torch.rand(1, 3, 64, 64, device=device))
    assert sr.shape == (1, 3, 256, 256)
    assert runtime_ms > 0
    assert measure_peak_mib(None, None, device) > 3 * 48 * 64 * 64 * 4 / 2**20


def test_fast_network_gives_the_same_when_a_size_comes_again():
    fast = NanoSR_fast().eval().cuda()
    plain = NanoSR_inference().eval().cuda()
    plain.load_state_dict(fast.state_dict())
    for size in ((32, 48), (40, 24), (32, 48), (32, 48), (40, 24)):
        lr = torch.rand(1, 3, *size, device="cuda")
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected, actual = plain(lr), fast(lr)
        assert torch.allclose(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 8e-2)])
def test_convolutions_finished_in_one_kernel_give_the_same(precision, tolerance):
    plain, triton = (NanoSR_fast(precision=precision, with_triton=value).eval().cuda() for value in (False, True))
    triton.load_state_dict(plain.state_dict())
    for _ in range(3):  # plainly, captured, replayed
        lr = torch.rand(1, 3, 40, 52, device="cuda")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected, actual = plain(lr), triton(lr)
        assert torch.allclose(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_work_on_a_stream_that_no_event_waits_for_is_timed():
    model, stream = NanoSR_inference().eval().cuda(), torch.cuda.Stream()
    lr = torch.rand(1, 3, 512, 512, device="cuda")  # a pass takes longer than starting its kernels

    def elsewhere(lr):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            return model(lr)

    honest_ms, hidden_ms = (min(timed_forward(run, lr).runtime_ms for _ in range(5)) for run in (model, elsewhere))
    assert hidden_ms > 0.9 * honest_ms


def test_want_of_memory_is_met_by_tiles():
    model, lr = NanoSR_inference().eval().cuda(), torch.rand(1, 3, 600, 600, device="cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        whole, _, tile = forward_within_memory(model, lr)
        assert tile is None
        whole = whole.cpu()
        torch.cuda.empty_cache()
        available = 300 * 2**20  # a layer's map of the whole image takes 66 MiB
        torch.cuda.set_per_process_memory_fraction(available / torch.cuda.get_device_properties(0).total_memory)
        try:
            joined, _, tile = forward_within_memory(model, lr)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert tile in SIDES
    assert torch.allclose(joined, whole, rtol=0, atol=1e-4 * whole.abs().max().item())


def test_auto_leaves_out_what_runs_on_a_cpu_alone(command, pairs, tmp_path):
    result = command("eval.py", "--model_id", 7, "--backend", "auto", *QUICK, "--data_dir", pairs, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not here: NanoSR_winograd" in result.stdout
    assert set(stored(tmp_path / "results")) >= {"NanoSR_inference"}


@pytest.mark.real_process
def test_contestant_gets_the_figures_of_this_process(command, pairs, tmp_path):
    records = []
    for more in ((), ("--isolated",)):
        words = ("eval.py", "--model_id", 7, *more, *QUICK, "--data_dir", pairs, "--fresh")
        assert command(*words, cwd=tmp_path).returncode == 0
        records.append(stored(tmp_path / "results")["NanoSR_inference"])
    plain, apart = records
    for key in ("images", "complexity", "model", "dataset"):
        assert apart[key] == plain[key], key
    assert apart["audit"]["findings"] == []
    assert plain["memory"]["peak_mib"] > 0
    assert apart["memory"]["peak_mib"] > 0


@pytest.mark.parametrize("feed", ["resident", "mapped"])
def test_network_is_taught_trained_and_gone_on_with(command, tmp_path, feed):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    write_photographs(tmp_path / "hr")
    for words in (
        ("-m", "training.prepare", "--hr", "hr", "--out", "set", "--processes", 1, *SMALL_CUT),
        ("-m", "benchmarks.studies.distill", "--train_dir", "set", "--model_id", 7, "--out", "taught", *ON_GPU),
    ):
        assert command(*words, cwd=tmp_path).returncode == 0
    words = ("train.py", "tiny.toml", "--data", "taught", "--feed", feed, *ON_GPU)
    for more in (("--time_limit", 0), ("--resume",)):
        result = command(*words, "--set", "cuda_graph=true", "steps=40", *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("finished")
    assert (tmp_path / "runs" / "tiny" / "log.csv").read_text().splitlines()[-1].startswith("40,")
