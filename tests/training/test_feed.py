"""training/data/feed.py: both feeds give the same patches."""

import numpy as np
import pytest
import torch

from tests.training.conftest import SMALL_CUT
from training.data.feed import MappedFeed, Plan, ResidentFeed, make_feed
from training.data.subimages import SubImages
from utils.data.images import write_png
from utils.errors import HarnessError


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
