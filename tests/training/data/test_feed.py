"""training/data/feed.py: both feeds give the same patches."""

import itertools

import numpy as np
import pytest
import torch

from tests.helpers import SMALL_CUT, python
from training.data.feed import MappedFeed, PatchSampler, ResidentFeed, detail, make_feed
from training.data.subimages import SubImages
from utils.data.images import bicubic_downscale, write_png
from utils.errors import HarnessError


@pytest.mark.parametrize(("workers", "candidates"), [(0, 1), (0, 3), (2, 3)])
def test_resident_and_mapped_feeds_give_the_same_batches(prepared, workers, candidates):
    subimages = SubImages(prepared)
    sampler = PatchSampler(subimages.shapes, seed=3, batch=5, hr_patch=32, candidates=candidates)
    resident = ResidentFeed(subimages, sampler, "cpu").batches(4, 8)
    mapped = MappedFeed(subimages, sampler, "cpu", workers).batches(4, 8)
    for (lr, hr), (mapped_lr, mapped_hr) in zip(resident, mapped, strict=True):
        assert lr.shape == (5, 3, 8, 8)
        assert hr.shape == (5, 3, 32, 32)
        assert torch.equal(lr, mapped_lr)
        assert torch.equal(hr, mapped_hr)


@pytest.mark.parametrize("workers", [0, 2])
def test_shifted_patches_and_negatives_are_the_same_in_both_feeds(prepared, workers):
    subimages = SubImages(prepared)
    sampler = PatchSampler(
        subimages.shapes, seed=3, batch=5, hr_patch=16, candidates=3, shifts=True, negatives=0.5, colour_swaps=0.9
    )
    resident = ResidentFeed(subimages, sampler, "cpu").batches(4, 8)
    mapped = MappedFeed(subimages, sampler, "cpu", workers).batches(4, 8)
    for (lr, hr), (mapped_lr, mapped_hr) in zip(resident, mapped, strict=True):
        assert torch.equal(lr, mapped_lr)
        assert torch.equal(hr, mapped_hr)


def test_shifted_patches_come_from_any_pixel_and_are_the_bicubic_of_the_image_there(prepare, tmp_path):
    rows, columns = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    image = np.stack([4 * rows, 4 * columns, noise], axis=2).astype(np.uint8)  # red and green say where a pixel is
    write_png(tmp_path / "hr" / "noise.png", image)
    assert prepare(tmp_path / "hr", tmp_path / "out", *SMALL_CUT).returncode == 0
    subimages = SubImages(tmp_path / "out")
    sampler = PatchSampler(subimages.shapes, seed=1, batch=500, hr_patch=32, shifts=True)
    ((lr, hr),) = ResidentFeed(subimages, sampler, "cpu").batches(0, 1)
    places = set()
    for small, patch in zip(lr, hr, strict=True):
        top, left = (int(patch[channel].min()) // 4 for channel in (0, 1))
        places.add((top, left))
        small, patch = (values.permute(1, 2, 0).numpy() for values in (small, patch))
        if patch[0, 0, 0] == 4 * top and patch[0, 0, 1] == 4 * left == patch[1, 0, 1]:  # neither flipped nor transposed
            assert np.array_equal(patch, image[top : top + 32, left : left + 32])
            around = image[top - 6 : top + 38, left - 6 : left + 38]  # what the patch's LR pixels are made of
            framed = np.pad(around, [(2, 2), (2, 2), (0, 0)])  # the patch begins at LR pixel 2
            assert np.array_equal(small, bicubic_downscale(framed)[2:10, 2:10])
    assert {top for top, _ in places} == {left for _, left in places} == set(range(6, 26))


@pytest.mark.parametrize("shifts", [False, True])
def test_negatives_are_the_same_patches_with_every_value_turned_round(prepared, shifts):
    subimages = SubImages(prepared)
    plans = [PatchSampler(subimages.shapes, 3, 40, 16, shifts=shifts, negatives=share) for share in (0, 0.5)]
    before, after = (next(ResidentFeed(subimages, plan, "cpu").batches(0, 1)) for plan in plans)
    turned = [torch.equal(negative, 255 - plain) for plain, negative in zip(before[1], after[1], strict=True)]
    assert 10 < sum(turned) < 30
    for plain, negative, is_turned in zip(before[0], after[0], turned, strict=True):
        assert torch.equal(negative, 255 - plain if is_turned else plain)


def test_colours_are_permuted_alike_in_lr_and_hr_and_in_each_way(prepared):
    subimages = SubImages(prepared)
    plans = [PatchSampler(subimages.shapes, 3, 60, 16, colour_swaps=share) for share in (0, 0.6)]
    before, after = (next(ResidentFeed(subimages, plan, "cpu").batches(0, 1)) for plan in plans)
    ways = []
    for lr, hr, new_lr, new_hr in zip(*before, *after, strict=True):
        found = [way for way in itertools.permutations(range(3)) if torch.equal(hr[list(way)], new_hr)]
        assert any(torch.equal(lr[list(way)], new_lr) for way in found)
        ways += found[:1]
    assert len(set(ways)) == 6
    assert 20 < ways.count((0, 1, 2)) < 40  # half: 0.4 that stay, and a sixth of the others


def test_shifts_need_room_around_a_patch(prepared):
    shapes = SubImages(prepared).shapes
    side = int(shapes.min())
    PatchSampler(shapes, 3, 6, side - 16, shifts=True)
    with pytest.raises(HarnessError, match=f"with shifts.*--smallest {side + 4}"):
        PatchSampler(shapes, 3, 6, side - 12, shifts=True)


@pytest.mark.slow
def test_threads_of_a_feed_leave_the_training_its_own(prepared):
    code = (
        "import sys, torch; from training.data.feed import MappedFeed, PatchSampler; "
        "from training.data.subimages import SubImages; data = SubImages(sys.argv[1]); "
        "next(MappedFeed(data, PatchSampler(data.shapes, 3, 2, 32), 'cpu', 2).batches(0, 4)); "
        "print(torch.get_num_threads())"
    )
    without = python("-c", "import torch; print(torch.get_num_threads())")
    assert python("-c", code, prepared).stdout == without.stdout != ""


def test_patches_are_aligned_and_come_in_all_eight_orientations(prepare, tmp_path):
    rows, columns = np.mgrid[:64, :64].astype(np.uint8) // 4 * 4  # constant inside each LR pixel
    write_png(tmp_path / "hr" / "ramp.png", np.stack([rows, columns, rows * 0], axis=2))
    write_png(tmp_path / "lr" / "rampx4.png", np.stack([rows, columns, rows * 0], axis=2)[::4, ::4])
    assert prepare(tmp_path / "hr", tmp_path / "out", *SMALL_CUT, "--lr", tmp_path / "lr").returncode == 0
    subimages = SubImages(tmp_path / "out")
    sampler = PatchSampler(subimages.shapes, seed=1, batch=64, hr_patch=32)
    (lr, hr), *_ = ResidentFeed(subimages, sampler, "cpu").batches(0, 1)
    assert torch.equal(hr[:, :, ::4, ::4], lr)
    assert torch.equal(hr[:, :, 3::4, 3::4], lr)
    down = (lr[:, :2, 1, 0].int() - lr[:, :2, 0, 0].int()).tolist()
    right = (lr[:, :2, 0, 1].int() - lr[:, :2, 0, 0].int()).tolist()
    assert len({(*d, *r) for d, r in zip(down, right, strict=True)}) == 8


@pytest.mark.parametrize("candidates", [1, 4])
def test_processes_share_a_batch_without_overlap(prepared, candidates):
    shapes = SubImages(prepared).shapes
    whole, *parts = (
        PatchSampler(shapes, 3, 6, 32, candidates, rank, world).sample(11, lambda drawn: drawn.top)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert len(whole.top) == 6
    for values in zip(vars(whole).values(), *(vars(part).values() for part in parts), strict=True):
        assert values[0].tolist() == np.stack(values[1:], axis=1).ravel().tolist()


def test_candidates_are_kept_in_proportion_to_their_detail():
    sampler = PatchSampler(np.array([[64, 64]]), seed=5, batch=20000, hr_patch=32, candidates=2)
    kept = sampler.sample(0, lambda drawn: 2 * drawn.flip_rows)
    # Weights 3 and 1. Of a quarter of the pairs both have it; of half of them one has, which wins in three of four.
    assert kept.flip_rows.mean() == pytest.approx(1 / 4 + 1 / 2 * 3 / 4, abs=0.015)
    assert len(sampler.sample(1, lambda drawn: 0 * drawn.top).top) == 20000  # all of them flat


def test_detail_is_the_sum_of_steps_between_neighbours():
    image = np.zeros((2, 3, 4, 4), np.int16)
    image[1, 0, 1, 2] = 200  # four neighbours
    image[1, 2, 0, 0] = 255  # two
    assert detail(image).tolist() == detail(torch.from_numpy(image)).tolist() == [0, 4 * 200 + 2 * 255]


def test_patch_larger_than_a_subimage_is_refused(prepared):
    with pytest.raises(HarnessError, match="hr_patch 64"):
        PatchSampler(SubImages(prepared).shapes, 3, 6, 64)


def test_set_that_fits_stays_resident(prepared):
    subimages = SubImages(prepared)
    sampler = PatchSampler(subimages.shapes, 3, 6, 32)
    assert isinstance(make_feed(subimages, sampler, "cpu", 0), ResidentFeed)
    assert isinstance(make_feed(subimages, sampler, "cpu", 0, "mapped"), MappedFeed)
