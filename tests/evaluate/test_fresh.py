"""utils/evaluate/fresh.py: every pass sees another input, and nobody sees the difference."""

from itertools import islice

import numpy as np
import torch

from tests.helpers import photograph
from utils.data.images import to_tensor
from utils.evaluate.fresh import changed, fresh_inputs


def test_every_value_moves_by_one_grey_level_and_stays_one():
    image = photograph(20, 30)
    image[0], image[1] = 0, 255
    other = changed(image, np.random.default_rng(0))
    assert other.dtype == np.uint8
    assert (np.abs(other.astype(int) - image) == 1).all()


def test_no_two_inputs_are_alike_and_each_is_an_images_tensor():
    image = photograph(8, 8)
    inputs = list(islice(fresh_inputs(image, 255.0), 5))
    for number, lr in enumerate(inputs):
        assert lr.shape == (1, 3, 8, 8)
        assert torch.equal(lr, lr.round())
        assert (lr - to_tensor(image, 255.0)).abs().max() == 1
        assert not any(torch.equal(lr, other) for other in inputs[:number])
