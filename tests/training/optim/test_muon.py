"""training/optim/muon.py: against a singular value decomposition, and which weights it is given."""

import pytest
import torch

from models.training.nanosr import NanoSR_train
from training.optim.muon import Muon, hidden_weights, orthogonalize


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24), (1, 16, 16)])
def test_update_keeps_singular_vectors_and_makes_the_values_about_one(shape):
    matrices = torch.randn(shape)
    (actual,) = orthogonalize([matrices], [1.0])
    assert actual.dtype == torch.float32
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ actual @ vh.mT
    diagonal = rotated.diagonal(dim1=1, dim2=2)
    strong = values > 0.1 * values.amax(dim=1, keepdim=True)
    assert diagonal[strong].min() > 0.6
    assert diagonal[strong].max() < 1.3
    assert (rotated - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_small_singular_values_are_those_of_the_iteration_as_it_is_published():
    u, _, vh = torch.linalg.svd(torch.randn(1, 20, 50, dtype=torch.float64), full_matrices=False)
    matrices = u @ torch.diag_embed(torch.logspace(0, -6, 20, dtype=torch.float64)[None]) @ vh
    x = matrices / matrices.norm()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    assert (orthogonalize([matrices.float()], [1.0])[0] - x).abs().max() < 1e-3


def test_first_update_moves_along_the_gradient_by_the_rate():
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    weight.grad = torch.randn_like(weight)
    Muon([weight], lr=0.01).step()
    assert (weight * weight.grad).sum() < 0
    # Singular values of 1 in an 8 x 36 matrix: rms 1 / sqrt(36), which the scale turns into 0.2.
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_weight_decay_is_decoupled():
    weight = torch.nn.Parameter(torch.ones(4, 4, 1, 1))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full_like(weight, 0.95))


def test_equal_shapes_are_updated_as_if_alone():
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(6, 5, 1, 1)) for _ in range(3)]
    alone = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    together, single = Muon(weights, 0.1), [Muon([weight], 0.1) for weight in alone]
    for _ in range(3):
        for weight, copy in zip(weights, alone, strict=True):
            weight.grad = copy.grad = torch.randn_like(weight)
        together.step()
        for optimizer in single:
            optimizer.step()
    assert all(torch.allclose(weight, copy, atol=1e-6) for weight, copy in zip(weights, alone, strict=True))


def test_memory_layout_makes_no_difference():
    torch.manual_seed(3)
    start = torch.randn(2, 6, 5, 3, 3)
    weights = [torch.nn.Parameter(start[0].clone()) for _ in range(3)]
    weights[1].data = weights[1].to(memory_format=torch.channels_last)
    optimizers = [Muon([weight], 0.1) for weight in weights]
    for gradient in start:
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        weights[2].data = weights[2].to(memory_format=torch.channels_last)  # as from a checkpoint in another layout
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.allclose(weights[0], other, atol=1e-6) for other in weights[1:])


def test_hidden_weights_are_the_kernels_between_features():
    model = NanoSR_train()
    # 18 blocks in pixel attention and conv_2 with four convolutions each, 6 feature extractors with three, conv_cat.
    assert len(hidden_weights(model)) == 19 * 4 + 6 * 3 + 1
    assert all(weight.shape[1] >= 48 for weight in hidden_weights(model))


class Mixed(torch.nn.Module):
    """Weights of four dimensions that are no matrix, and a kernel that is never used."""

    def __init__(self):
        super().__init__()
        self.head, self.body = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)
        self.scale = torch.nn.Parameter(torch.ones(1, 8, 1, 1))
        self.each = torch.nn.Conv2d(8, 8, 3, groups=8)
        self.unused = torch.nn.Conv2d(8, 8, 3)
        self.tail = torch.nn.Conv2d(8, 48, 3)

    def forward(self, x):
        return self.tail(self.each(self.body(self.head(x)) * self.scale))


def test_scales_and_grouped_kernels_are_no_hidden_weights_and_unused_ones_stay():
    model = Mixed()
    hidden = hidden_weights(model)
    assert [id(weight) for weight in hidden] == [id(model.body.weight), id(model.unused.weight)]
    before = [weight.detach().clone() for weight in hidden]
    model(torch.rand(1, 3, 12, 12)).square().sum().backward()
    Muon(hidden, lr=0.1).step()
    assert [torch.equal(weight, copy) for weight, copy in zip(hidden, before, strict=True)] == [False, True]


def test_network_without_convolutions_has_no_hidden_weights():
    assert hidden_weights(torch.nn.Linear(3, 48)) == []
