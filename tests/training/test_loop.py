"""training/loop.py: steps, averages and guards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers import both_kinds
from training.data.feed import PatchSampler, ResidentFeed
from training.data.subimages import SubImages
from training.loop import Trainer, read_state, train, unreached_kernels
from training.optim.losses import LOSSES
from training.recipe import load_recipe
from training.setup import set_up
from utils.errors import DivergedError
from utils.zoo.registry import ModelTable


def run_steps(recipe, prepared):
    subimages = SubImages(prepared)
    trainer = Trainer(set_up(recipe, "cpu"))
    losses = []
    feed = ResidentFeed(subimages, PatchSampler(subimages.shapes, recipe.seed, recipe.batch, recipe.hr_patch), "cpu")
    assert train(trainer, feed, lambda loss, norm: losses.append(loss.item()))
    return trainer, losses


@pytest.mark.parametrize("recipe_path", ["plain", pytest.param("collapsed", marks=pytest.mark.slow)], indirect=True)
def test_loss_falls(recipe_path, prepared):
    _, losses = run_steps(replace(load_recipe(recipe_path), steps=60, milestones=()), prepared)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("recipe_path", ["plain"], indirect=True)  # the quicker one
@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - {"l1"}))
def test_other_losses_fall_too(recipe_path, prepared, loss):
    _, losses = run_steps(replace(load_recipe(recipe_path), steps=40, milestones=(), loss=loss), prepared)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_branches_and_collapsed_train_alike(recipe_path, prepared):
    recipe = load_recipe(recipe_path)
    _, collapsed = run_steps(recipe, prepared)
    _, branches = run_steps(replace(recipe, form="branches"), prepared)
    assert branches == pytest.approx(collapsed, rel=1e-3)


@both_kinds
def test_average_forgets_the_start_at_once_and_then_follows_its_definition(recipe_path, prepared):
    recipe = replace(load_recipe(recipe_path), steps=3, milestones=(), ema_decay=0.15)
    trainer = Trainer(set_up(recipe, "cpu"))
    subimages = SubImages(prepared)
    feed = ResidentFeed(subimages, PatchSampler(subimages.shapes, 7, 2, 32), "cpu")
    expected = trainer.model.conv_cat.weight.detach().clone()
    for (lr, hr), decay in zip(feed.batches(0, 3), (1 / 10, 0.15, 0.15), strict=True):  # 2 / 11 would be more
        trainer.update(lr, hr)
        expected = decay * expected + (1 - decay) * trainer.model.conv_cat.weight.detach()
    assert torch.allclose(trainer.weights.conv_cat.weight, expected, atol=1e-7)


NORMALIZED = """
from torch import nn


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48, momentum=0.5), nn.PixelShuffle(4))

    def forward(self, lr):
        return self.body(lr)
"""


def test_average_takes_the_statistics_that_a_network_keeps_with_it(recipe_path, prepared, tmp_path):
    (tmp_path / "normalized.py").write_text(NORMALIZED)
    model = ModelTable(file=str(tmp_path / "normalized.py"), class_name="Normalized")
    recipe = replace(load_recipe(recipe_path), model=model, form="plain", output_init=0.0, steps=1)
    trainer, _ = run_steps(recipe, prepared)
    live, average = trainer.model.body[1], trainer.weights.body[1]
    assert live.running_mean.abs().max() > 0
    assert torch.allclose(average.running_mean, 0.9 * live.running_mean, rtol=1e-6)  # (1 + 0) / (10 + 0) of zeros
    assert torch.allclose(average.running_var, 0.1 + 0.9 * live.running_var, rtol=1e-6)
    assert average.num_batches_tracked == live.num_batches_tracked == 1


@both_kinds
def test_non_finite_loss_stops_with_step_and_seed_and_keeps_the_weights(recipe_path, prepared):
    recipe = load_recipe(recipe_path)
    trainer = Trainer(set_up(recipe, "cpu"))
    subimages = SubImages(prepared)
    feed = ResidentFeed(subimages, PatchSampler(subimages.shapes, 7, 2, 32), "cpu")

    def poison(loss, norm):
        if trainer.step == 2:
            with torch.no_grad():
                trainer.model.conv_cat.bias[0] = float("nan")

    with pytest.raises(DivergedError, match=r"step 2: loss nan.*seed 7, step 2"):
        train(trainer, feed, poison)
    others = [weight for name, weight in trainer.model.named_parameters() if name != "conv_cat.bias"]
    assert all(torch.isfinite(weight).all() for weight in others)


def test_kernels_of_a_dead_block_are_named(recipe_path, prepared):
    trainer, _ = run_steps(load_recipe(recipe_path), prepared)
    assert unreached_kernels(trainer.model) == []
    with torch.no_grad():  # what goes into a SiLU, far below zero
        trainer.model.get_submodule("block_2.pixel_attention.conv_2.conv").reduce.bias.fill_(-1e4)
    trainer.gradients(*(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8) for side in (8, 32)))
    dead = {name.rpartition(".conv.")[0] for name in unreached_kernels(trainer.model)}
    assert dead >= {f"block_2.pixel_attention.conv_{number}" for number in (1, 2, 3)}
    assert not any(name.startswith(("conv_1", "block_1", "conv_cat", "upsampler")) for name in dead)


@pytest.mark.parametrize("recipe_path", ["plain"], indirect=True)
def test_loaded_moments_lie_as_the_weights_do(recipe_path, prepared, tmp_path):
    recipe = replace(load_recipe(recipe_path), steps=2, milestones=(), kernels="torch", channels_last=False)
    trainer, _ = run_steps(recipe, prepared)
    trainer.save(tmp_path)
    other = Trainer(set_up(recipe, "cpu"))
    other.model.to(memory_format=torch.channels_last)  # as other kernels want them
    other.load(read_state(tmp_path / "state.pt", torch.device("cpu")), tmp_path / "state.pt")
    moments = [(w, s["exp_avg"]) for w, s in other.optimizers[0].state.items() if w.ndim == 4]
    assert moments
    assert all(moment.stride() == weight.stride() for weight, moment in moments)
    for (_, moment), before in zip(moments, _moments_of_kernels(trainer), strict=True):
        assert torch.equal(moment, before)


def _moments_of_kernels(trainer):
    return [state["exp_avg"] for weight, state in trainer.optimizers[0].state.items() if weight.ndim == 4]


def test_muon_without_kernels_between_features_is_told(recipe_path, tmp_path):
    (tmp_path / "net.py").write_text(ONE_PART)
    recipe = replace(
        load_recipe(recipe_path), form="plain", model=ModelTable(file=str(tmp_path / "net.py"), class_name="Net")
    )
    told = [
        any("not used" in note for note in set_up(replace(recipe, muon_learning_rate=rate), "cpu").notes)
        for rate in (0.0, 1e-3)
    ]
    assert told == [False, True]


ONE_PART = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, lr):
        return self.body(lr)
"""
