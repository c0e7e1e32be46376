"""utils/evaluate/evaluation.py: the same results whether images are scored one by one or meanwhile."""

import math
import time
from concurrent.futures import ThreadPoolExecutor, wait

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import CPU, Enlarge, write_pairs
from utils.ahead import ahead
from utils.data.datasets import open_dataset
from utils.data.images import read_rgb
from utils.errors import HarnessError
from utils.evaluate import evaluation
from utils.evaluate.evaluation import evaluate
from utils.evaluate.runner import Runner
from utils.record import WeightsInfo
from utils.zoo.registry import LoadedModel, ModelEntry, Origin


def loaded(data_range=1.0, missing=None):
    entry = ModelEntry(
        id=1,
        name="Enlarge",
        file="enlarge.py",
        class_name="Enlarge",
        arguments={},
        checkpoint="",
        data_range=data_range,
        origin=Origin.REGISTRY,
    )
    return Runner(LoadedModel(Enlarge(), entry, WeightsInfo(sha256=None, provenance="", missing_weights=missing)), CPU)


def quality(results):
    return [(result.name, result.lr_pixels, result.psnr, result.ssim) for result in results]


@pytest.fixture
def many(tmp_path):
    return write_pairs(tmp_path / "data", [f"{number:02}" for number in range(12)])


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(many, tmp_path, workers):
    dataset = open_dataset(many)
    alone = quality(evaluate(loaded(), dataset, True, tmp_path / "alone"))
    beside = quality(evaluate(loaded(), dataset, True, tmp_path / "beside", workers))
    assert beside == alone
    assert [name for name, *_ in alone] == sorted(name for name, *_ in alone)
    for pair in dataset.pairs:
        assert np.array_equal(read_rgb(tmp_path / "alone" / pair.name), read_rgb(tmp_path / "beside" / pair.name))


class Broken(Enlarge):
    """Gives NaN at the first pixel of every second image, infinities of both signs in all."""

    count = 0

    def forward(self, x):
        self.count += 1
        sr = super().forward(x)
        sr[0, :, 5, :2] = torch.tensor([math.inf, -math.inf])
        if self.count % 2:
            sr[0, :, 5, 5] = math.nan
        return sr


def test_nan_is_said_and_counts_as_black(many, tmp_path):
    runner = loaded()
    runner.model = Broken()
    results = list(evaluate(runner, open_dataset(many), save_dir=tmp_path / "sr"))
    assert [result.nan for result in results] == [True, False] * 6
    assert not any(result.nan for result in evaluate(loaded(), open_dataset(many)))
    image = read_rgb(tmp_path / "sr" / results[0].name)
    assert image[5, [0, 1, 5]].tolist() == [[255] * 3, [0] * 3, [0] * 3]


def test_nothing_runs_beside_a_forward_pass_without_workers(many, tmp_path, monkeypatch):
    under_way, beside = [], []

    def watched(function):
        def call(*arguments):
            under_way.append(function)
            try:
                time.sleep(0.01)  # long enough for a forward pass to meet it
                return function(*arguments)
            finally:
                under_way.remove(function)

        return call

    for name in ("read_fitting_hr", "psnr", "ssim", "write_png"):
        monkeypatch.setattr(evaluation, name, watched(getattr(evaluation, name)))
    network = loaded()
    network.model.register_forward_hook(lambda *_: beside.extend(under_way))
    assert len(list(evaluate(network, open_dataset(many), True, tmp_path / "out"))) == 12
    assert beside == []
    list(evaluate(network, open_dataset(many), True, tmp_path / "out", workers=3))
    assert beside  # in throughput mode it does, so it would have been noticed


def test_range_of_the_network_does_not_change_the_result(many):
    dataset = open_dataset(many)
    one, other = (quality(evaluate(loaded(data_range), dataset)) for data_range in (1.0, 255.0))
    assert [psnr for *_, psnr, _ in one] == pytest.approx([psnr for *_, psnr, _ in other], abs=0.01)


@pytest.mark.parametrize("workers", [0, 3])
def test_everything_before_a_broken_image_is_yielded(many, workers):
    (many / "HR" / "07.png").write_bytes(b"broken")
    names, results = [], evaluate(loaded(), open_dataset(many), workers=workers)
    with pytest.raises(HarnessError, match=r"07\.png"):
        names.extend(result.name for result in results)
    assert names == [f"{number:02}.png" for number in range(7)]


def test_grey_hr_counts_as_three_equal_channels(many):
    for kind, suffix in (("HR", ""), ("LR", "x4")):
        path = many / kind / f"00{suffix}.png"
        grey = read_rgb(path)[:, :, 1]
        cv2.imwrite(str(path), grey)
    first = next(evaluate(loaded(), open_dataset(many)))
    assert 10 < first.psnr < 60


def test_without_weights_nothing_is_scored(many):
    first = next(evaluate(loaded(missing="no checkpoint"), open_dataset(many), True))
    assert (first.psnr, first.ssim) == (None, None)
    assert first.runtime_ms > 0


def test_no_more_than_the_limit_runs_ahead():
    started = []
    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, lambda item: item * 2, (started.append(item) or item for item in range(100)), 3)
        for taken, result in enumerate(results):
            assert result == 2 * taken
            assert len(started) <= taken + 4


def test_a_finished_result_is_not_kept_until_the_limit():
    with ThreadPoolExecutor(1) as pool:

        def items():
            for item in range(5):
                yield item
                wait(pending)  # all that was submitted so far

        pending = []
        real, pool.submit = pool.submit, lambda *call: pending.append(real(*call)) or pending[-1]
        assert next(ahead(pool, lambda item: item, items(), 100)) == 0
        assert len(pending) <= 2
