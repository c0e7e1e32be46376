"""benchmarks/studies/variants.py: what is made of a training image, and the table."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.studies import variants
from benchmarks.studies.variants import VARIANTS, draw, measure
from training.data.subimages import SubImages
from utils.errors import HarnessError
from utils.files import ROOT


def test_variants_are_what_their_names_say():
    hr = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    made = {name: variant(hr) for name, variant in VARIANTS.items()}
    assert np.array_equal(made["as prepared"], hr)
    assert np.array_equal(made["moved by 1 and 2 pixels"], hr[1:61, 2:70])
    assert np.array_equal(made["negative"].astype(int), 255 - hr.astype(int))
    assert np.array_equal(made["green, blue and red exchanged"][..., 2], hr[..., 0])
    assert made["at 0.75 of the size"].shape == (48, 52, 3)
    assert made["at 0.75 of the size"].mean() == pytest.approx(hr.mean(), abs=1)


def test_an_image_without_an_error_does_not_spoil_the_mean(monkeypatch):
    def nearest(runner, lr):
        return SimpleNamespace(sr=lr.repeat(4, axis=0).repeat(4, axis=1))

    monkeypatch.setattr(variants, "restore", nearest)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    alone = measure([None], [noise])["negative"]
    assert measure([None], [noise, np.zeros_like(noise)])["negative"] == pytest.approx((alone + 100) / 2)


def test_sub_images_that_are_too_small_are_left_out(prepared):
    subimages = SubImages(prepared)
    assert {image.shape for image in draw(subimages, 100, 1)} == {(64, 64, 3)}
    subimages.shapes = subimages.shapes[2:]
    subimages.shapes[:] = 48
    with pytest.raises(HarnessError, match="holds no sub-image of at least 64 pixels"):
        draw(subimages, 100, 1)


def test_table_has_a_column_for_each_checkpoint(command, prepared):
    weights = [ROOT / "model_zoo" / "team07_NanoSR.pth"] * 2
    result = command(
        "-m", "benchmarks.studies.variants", "--train_dir", prepared, "--checkpoint", *weights, "--count", 2
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[4:] if line]
    assert len(rows) == len(VARIANTS)
    assert all(row[-1] == row[-2] and 5 < float(row[-1]) < 100 for row in rows)
