"""training/data/graphics.py: drawn images."""

import numpy as np
import pytest

from training.data.graphics import draw
from utils.data.images import read_rgb


def test_a_drawing_depends_on_its_seed_alone():
    first, again, other = (draw(np.random.default_rng(seed), 160, 120) for seed in (1, 1, 2))
    assert first.shape == (120, 160, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(4))
def test_a_drawing_has_flat_parts_and_sharp_edges(seed):
    image = draw(np.random.default_rng(seed), 320, 240).astype(int)
    steps = np.abs(np.diff(image, axis=1)).max(axis=2)
    assert (steps <= 2).mean() > 0.5
    assert (steps > 60).mean() > 0.005


def test_the_command_writes_numbered_images(command, tmp_path):
    result = command("-m", "training.data.graphics", "--out", tmp_path, "--count", 2)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["graphics_000.png", "graphics_001.png"]
    assert np.array_equal(read_rgb(tmp_path / "graphics_001.png"), draw(np.random.default_rng([2026, 1])))
