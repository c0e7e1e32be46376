"""training/: recipes, data, feeding, and a loop that goes on bit by bit where it was."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from models.nanosr_train import NanoSR_train
from tests.conftest import photograph
from training.feed import MappedFeed, Plan, ResidentFeed, make_feed
from training.log import read_log
from training.loop import Trainer, train
from training.prepare import Cut, boxes
from training.recipe import load_recipe
from training.subimages import SubImages, verify
from utils.checkpoints import load_state_dict
from utils.errors import HarnessError
from utils.images import bicubic_downscale, write_png
from utils.registry import ROOT

RECIPE = """
batch = 2
hr_patch = 32
seed = 7
output_init = 0.02
steps = 6
learning_rate = 1e-3
muon_learning_rate = 1e-3
warmup = 2
milestones = [4]
gamma = 0.5
betas = [0.9, 0.99]
eps = 1e-8
weight_decay = 0.0
clip_norm = 1.0
ema_decay = 0.9
form = "collapsed"
precision = "float32"
channels_last = true
cuda_graph = false
log_every = 1
validate_every = 3
checkpoint_every = 2
"""


@pytest.fixture
def recipe_path(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def write_photographs(folder):
    """Write three HR images of different sizes."""
    for number, size in enumerate([(64, 96), (50, 70), (130, 41)]):
        write_png(folder / f"{number}.png", photograph(*size, number))
    return folder


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path / "hr")


SMALL_CUT = ("--size", 64, "--step", 32, "--smallest", 32, "--images-per-shard", 2)


@pytest.fixture
def prepare(command):
    def run(hr, out, *arguments):
        return command("-m", "training.prepare", "--hr", hr, "--out", out, "--workers", 1, *arguments)

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The photographs, prepared by two workers; for reading only."""
    folder = tmp_path_factory.mktemp("prepared")
    hr = write_photographs(folder / "hr")
    result = python("-m", "training.prepare", "--hr", hr, "--out", folder / "out", "--workers", 2, *SMALL_CUT)
    assert result.returncode == 0, result.stderr
    return folder / "out"


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200, **options
    )


# recipes


def test_every_recipe_of_the_project_loads():
    for path in sorted((ROOT / "training" / "recipes").glob("*.toml")):
        load_recipe(path)


def test_schedule_is_the_published_one():
    recipe = load_recipe(ROOT / "training" / "recipes" / "nanosr_500k.toml")
    at = {0: 5e-4, 249_999: 5e-4, 250_000: 2.5e-4, 400_000: 1.25e-4, 450_000: 6.25e-5, 475_000: 3.125e-5}
    assert {step: recipe.learning_rate * recipe.schedule_at(step) for step in at} == pytest.approx(at)
    assert (recipe.batch, recipe.hr_patch, recipe.betas) == (64, 128, (0.9, 0.99))


def test_warm_up_rises_linearly(recipe_path):
    recipe = load_recipe(recipe_path)
    assert [recipe.learning_rate * recipe.schedule_at(step) for step in range(5)] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 1e-3, 5e-4]
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("momentum = 0.9", "unknown key momentum"),
        ("batch = 2.5", "Cannot overwrite|not valid TOML"),
    ],
)
def test_extra_line_is_named(recipe_path, line, reason):
    recipe_path.write_text(RECIPE + line)
    with pytest.raises(HarnessError, match=reason):
        load_recipe(recipe_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("batch = 2\n", "", "missing key batch"),
        ("batch = 2\n", "batch = 2.5\n", "batch is 2.5, expected int"),
        ("hr_patch = 32", "hr_patch = 30", "hr_patch = 30 is out of range"),
        ('"collapsed"', '"fused"', "form = 'fused' is out of range"),
        ("channels_last = true", "channels_last = 1", "channels_last is 1, expected bool"),
    ],
)
def test_bad_recipe_names_the_key(recipe_path, old, new, reason):
    recipe_path.write_text(RECIPE.replace(old, new))
    with pytest.raises(HarnessError, match=reason):
        load_recipe(recipe_path)


# preparing


@pytest.mark.parametrize("size", [(480, 480), (132, 1000), (832, 484), (1356, 2040)])
def test_boxes_hold_every_patch_of_the_image(size):
    cut = Cut()
    found = boxes(*size, cut)
    assert all(top % 4 == 0 and left % 4 == 0 for top, left, _, _ in found)
    assert all(top + height <= size[0] and left + width <= size[1] for top, left, height, width in found)
    patch = 128
    corners = {(top, left) for top in range(0, size[0] - patch + 1, 4) for left in range(0, size[1] - patch + 1, 4)}
    for top, left, height, width in found:
        corners -= {
            (y, x) for y in range(top, top + height - patch + 1, 4) for x in range(left, left + width - patch + 1, 4)
        }
    assert not corners


def test_prepared_pairs_are_the_images_and_their_bicubic(prepared):
    subimages = SubImages(prepared)
    first = photograph(64, 96, 0)
    lr, hr = subimages.pair(1)
    assert np.array_equal(hr, first[:, 32:])
    assert np.array_equal(lr, bicubic_downscale(first)[:, 8:])
    assert subimages.shapes.tolist()[:3] == [[64, 64], [64, 64], [48, 64]]
    assert len(subimages.hr) == 2  # shards
    verify(prepared)


def test_lr_given_beside_hr_is_taken(prepare, photographs, tmp_path):
    for path in photographs.iterdir():
        height, width = (side // 4 for side in cv2.imread(str(path)).shape[:2])
        write_png(tmp_path / "lr" / f"{path.stem}x4.png", np.full((height, width, 3), 9, np.uint8))
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT, "--lr", tmp_path / "lr")
    assert result.returncode == 0, result.stderr
    assert SubImages(tmp_path / "out").pair(0)[0].max() == 9


def test_corrupt_and_small_images_are_skipped_counted_or_fatal(prepare, photographs, tmp_path):
    (photographs / "1.png").write_bytes((photographs / "1.png").read_bytes()[:100])
    write_png(photographs / "9.png", photograph(20, 90))
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT)
    assert result.returncode == 0, result.stderr
    assert "1.png: truncated PNG" in result.stderr
    assert "9.png: 88 x 20 is smaller than 32" in result.stderr
    assert "2 images skipped" in result.stdout
    strict = prepare(photographs, tmp_path / "strict", *SMALL_CUT, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "1.png" in strict.stderr.strip().splitlines()[-1]


def test_empty_folder_and_other_settings_are_refused(prepare, photographs, tmp_path):
    assert prepare(photographs, tmp_path / "done", *SMALL_CUT).returncode == 0
    (tmp_path / "empty").mkdir()
    assert "holds no PNG or JPEG" in prepare(tmp_path / "empty", tmp_path / "out").stderr
    again = prepare(photographs, tmp_path / "done", *SMALL_CUT[:-1], 3)
    assert "made from other images or settings" in again.stderr


def test_interrupted_preparation_goes_on_and_damage_is_found(prepare, photographs, tmp_path):
    out = tmp_path / "out"
    assert prepare(photographs, out, *SMALL_CUT).returncode == 0
    kept, lost = out / "shard-00000.hr", out / "shard-00001.json"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    (out / "index.json").unlink()
    with pytest.raises(HarnessError, match="no finished training set"):
        SubImages(out)
    assert prepare(photographs, out, *SMALL_CUT).returncode == 0
    assert kept.stat().st_mtime_ns == before
    data = bytearray(kept.read_bytes())
    data[10] ^= 1
    kept.write_bytes(data)
    with pytest.raises(HarnessError, match=r"shard-00000\.hr: sha256 differs"):
        verify(out)


# feeding


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_and_mapped_feeds_give_the_same_batches(prepared, workers):
    subimages = SubImages(prepared)
    plan = Plan(subimages.shapes, seed=3, batch=5, hr_patch=32)
    resident = ResidentFeed(subimages, plan, "cpu").batches(4, 8)
    mapped = MappedFeed(subimages, plan, "cpu", workers).batches(4, 8)
    for (lr, hr), (mapped_lr, mapped_hr) in zip(resident, mapped, strict=True):
        assert lr.shape == (5, 3, 8, 8)
        assert hr.shape == (5, 3, 32, 32)
        assert torch.equal(lr, mapped_lr)
        assert torch.equal(hr, mapped_hr)


def test_patches_are_aligned_and_come_in_all_eight_orientations(prepare, tmp_path):
    rows, columns = np.mgrid[:64, :64].astype(np.uint8) // 4 * 4  # constant inside each LR pixel
    write_png(tmp_path / "hr" / "ramp.png", np.stack([rows, columns, rows * 0], axis=2))
    write_png(tmp_path / "lr" / "rampx4.png", np.stack([rows, columns, rows * 0], axis=2)[::4, ::4])
    assert prepare(tmp_path / "hr", tmp_path / "out", *SMALL_CUT, "--lr", tmp_path / "lr").returncode == 0
    subimages = SubImages(tmp_path / "out")
    plan = Plan(subimages.shapes, seed=1, batch=64, hr_patch=32)
    (lr, hr), *_ = ResidentFeed(subimages, plan, "cpu").batches(0, 1)
    assert torch.equal(hr[:, :, ::4, ::4], lr)
    assert torch.equal(hr[:, :, 3::4, 3::4], lr)
    down = (lr[:, :2, 1, 0].int() - lr[:, :2, 0, 0].int()).tolist()
    right = (lr[:, :2, 0, 1].int() - lr[:, :2, 0, 0].int()).tolist()
    assert len({(*d, *r) for d, r in zip(down, right, strict=True)}) == 8


def test_processes_share_a_batch_without_overlap(prepared):
    shapes = SubImages(prepared).shapes
    whole = Plan(shapes, 3, 6, 32).draw(11)
    parts = [Plan(shapes, 3, 6, 32, rank, 2).draw(11) for rank in range(2)]
    assert sorted(np.concatenate([part.top * 1000 + part.left for part in parts])) == sorted(
        whole.top * 1000 + whole.left
    )


def test_patch_larger_than_a_subimage_is_refused(prepared):
    with pytest.raises(HarnessError, match="hr_patch 64"):
        Plan(SubImages(prepared).shapes, 3, 6, 64)


def test_set_that_fits_stays_resident(prepared):
    subimages = SubImages(prepared)
    plan = Plan(subimages.shapes, 3, 6, 32)
    assert isinstance(make_feed(subimages, plan, "cpu", 0), ResidentFeed)
    assert isinstance(make_feed(subimages, plan, "cpu", 0, "mapped"), MappedFeed)


# the loop


def run_steps(recipe, prepared):
    subimages = SubImages(prepared)
    trainer = Trainer(recipe, "cpu")
    losses = []
    feed = ResidentFeed(subimages, Plan(subimages.shapes, recipe.seed, recipe.batch, recipe.hr_patch), "cpu")
    assert train(trainer, feed, lambda loss, norm: losses.append(loss.item()))
    return trainer, losses


def test_loss_falls(recipe_path, prepared):
    _, losses = run_steps(replace(load_recipe(recipe_path), steps=60, milestones=()), prepared)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_branches_and_collapsed_train_alike(recipe_path, prepared):
    recipe = load_recipe(recipe_path)
    _, collapsed = run_steps(recipe, prepared)
    _, branches = run_steps(replace(recipe, form="branches"), prepared)
    assert branches == pytest.approx(collapsed, rel=1e-3)


def test_average_follows_its_definition(recipe_path, prepared):
    recipe = replace(load_recipe(recipe_path), steps=2, milestones=())
    trainer = Trainer(recipe, "cpu")
    subimages = SubImages(prepared)
    feed = ResidentFeed(subimages, Plan(subimages.shapes, 7, 2, 32), "cpu")
    expected = trainer.model.conv_cat.weight.detach().clone()
    for lr, hr in feed.batches(0, 2):
        trainer.update(lr, hr)
        expected = 0.9 * expected + 0.1 * trainer.model.conv_cat.weight.detach()
    assert torch.allclose(trainer.average.conv_cat.weight, expected, atol=1e-7)


def test_non_finite_loss_stops_with_step_and_seed_and_keeps_the_weights(recipe_path, prepared):
    recipe = load_recipe(recipe_path)
    trainer = Trainer(recipe, "cpu")
    subimages = SubImages(prepared)
    feed = ResidentFeed(subimages, Plan(subimages.shapes, 7, 2, 32), "cpu")

    def poison(loss, norm):
        if trainer.step == 2:
            with torch.no_grad():
                trainer.model.conv_cat.bias[0] = float("nan")

    with pytest.raises(HarnessError, match=r"step 2: loss nan.*seed 7, step 2"):
        train(trainer, feed, poison)
    assert torch.isfinite(trainer.model.conv_1.conv.expand.weight).all()


def train_command(recipe_path, prepared, run_dir, pairs, *arguments):
    return [
        "train.py", recipe_path, "--data", prepared, "--run_dir", run_dir,
        "--validation", pairs, "--device", "cpu", *arguments,
    ]  # fmt: skip


def test_killed_at_any_moment_and_resumed_ends_with_the_same_bits(recipe_path, prepared, pairs, tmp_path):
    assert python(*train_command(recipe_path, prepared, tmp_path / "whole", pairs)).returncode == 0
    for kill_after in (4, 5):  # log rows: between two checkpoints, and around one
        command = train_command(recipe_path, prepared, tmp_path / f"cut{kill_after}", pairs)
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL)
        log = tmp_path / f"cut{kill_after}" / "log.csv"
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        result = python(*command, "--resume")
        assert result.returncode == 0, result.stderr
        for name in ("nanosr_train.pth", "team07_NanoSR.pth"):
            expected = load_state_dict(tmp_path / "whole" / name)
            actual = load_state_dict(tmp_path / f"cut{kill_after}" / name)
            assert all(torch.equal(expected[key], actual[key]) for key in expected)
        assert [row["step"] for row in read_log(log)] == [1, 2, 3, 4, 5, 6]
        assert (log.parent / "curves.png").stat().st_size > 1000


def test_checkpoint_fuses_to_the_exported_average(command, recipe_path, prepared, pairs, tmp_path):
    run_dir = tmp_path / "run"
    assert command(*train_command(recipe_path, prepared, run_dir, pairs)).returncode == 0
    assert command("-m", "training.fuse", run_dir / "state.pt", "--out", tmp_path / "fused.pth").returncode == 0
    expected, actual = (load_state_dict(path) for path in (run_dir / "team07_NanoSR.pth", tmp_path / "fused.pth"))
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_minutes_stop_at_a_checkpoint(command, recipe_path, prepared, pairs, tmp_path):
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs, "--minutes", 0))
    assert result.returncode == 0, result.stderr
    assert "stopped at step 1 of 6" in result.stdout
    result = command(*train_command(recipe_path, prepared, tmp_path / "run", pairs, "--resume"))
    assert "finished" in result.stdout


def test_a_run_is_not_overwritten_nor_its_recipe_changed(command, recipe_path, prepared, pairs, tmp_path):
    words = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert command(*words, "--minutes", 0).returncode == 0
    assert "go on with --resume" in command(*words).stderr
    recipe_path.write_text(RECIPE.replace("\nlearning_rate = 1e-3", "\nlearning_rate = 2e-3"))
    result = command(*words, "--resume")
    assert result.returncode == 2
    assert "the recipe has changed (learning_rate was 0.001)" in result.stderr


def test_two_processes_follow_one_with_the_doubled_batch(recipe_path, prepared, pairs, tmp_path):
    # Muon rounds to bfloat16, which makes a visible step of a difference in the last bit.
    recipe_path.write_text(RECIPE.replace("muon_learning_rate = 1e-3", "muon_learning_rate = 0.0"))
    one = train_command(recipe_path, prepared, tmp_path / "one", pairs)
    assert python(*one).returncode == 0
    two = train_command(recipe_path, prepared, tmp_path / "two", pairs)
    result = python("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port(), *two)
    assert result.returncode == 0, result.stderr
    losses = [[float(row["loss"]) for row in read_log(tmp_path / run / "log.csv")] for run in ("one", "two")]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_full_disk_costs_one_line_and_keeps_the_old_checkpoint(recipe_path, prepared, pairs, tmp_path):
    command = train_command(recipe_path, prepared, tmp_path / "run", pairs)
    assert python(*command, "--minutes", 0).returncode == 0
    before = (tmp_path / "run" / "state.pt").read_bytes()
    limit = 10 * 2**20  # a file may grow to 10 MiB, the state needs 40

    def small_files_only():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = python(*command, "--resume", preexec_fn=small_files_only)
    assert result.returncode == 2, result.stderr
    assert "state.pt: cannot be written" in result.stderr.strip().splitlines()[-1]
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_fuse_writes_the_fused_file_and_prints_the_difference(command, tmp_path):
    model = NanoSR_train()
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    result = command("-m", "training.fuse", tmp_path / "trained.pth", "--out", tmp_path / "zoo" / "fused.pth")
    assert result.returncode == 0, result.stderr
    difference = float(result.stdout.split("difference ")[1].split()[0])
    assert 0 < difference < 1e-4
    expected = model.fuse().state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in load_state_dict(tmp_path / "zoo" / "fused.pth").items()
    )
