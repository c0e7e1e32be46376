"""Muon: momentum whose update is orthogonalized, for the convolutions between hidden features.

Each weight is seen as a c_out x (c_in k k) matrix. Its momentum is replaced by the nearest matrix with singular values
about 1, so that directions with small gradients move as far as those with large ones. Source: K. Jordan et al., "Muon:
An optimizer for hidden layers in neural networks" (2024); the scale to AdamW's update: J. Liu et al., "Muon is Scalable
for LLM Training" (2025). torch.optim.Muon takes matrices only, one after the other; here all kernels of one shape are
orthogonalized in one product.
"""

from collections import defaultdict

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz step, from the first source
STEPS = 5
ADAMW_RMS = 0.2  # root mean square of an AdamW update at learning rate 1, from the second source


def orthogonalize(matrices, scale=1.0):
    """Return N x R x C matrices with the singular vectors of the given ones and singular values about `scale`.

    They are 0.7 to 1.2 times that. Each step multiplies x by a polynomial of x x'. All of these are polynomials of the
    first, so what is iterated is that small square matrix, and the product of the polynomials is applied once. It is
    computed in float32, since that square holds small singular values squared, and returned in the dtype given.
    """
    a, b, c = QUINTIC
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).float()
    gram = x @ x.mT
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-14)[:, None, None]  # of the norm
    gram, product = gram / square, None
    for step in range(STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step + 1 < STEPS:
            gram = polynomial @ gram @ polynomial
    x = (product * (scale * square.rsqrt())) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def lain_as(tensor, weight):
    """Return a tensor in a weight's memory layout: itself, if it is. The stride of a side of 1 says nothing."""
    strides = zip(weight.shape, tensor.stride(), weight.stride(), strict=True)
    if all(side == 1 or given == wanted for side, given, wanted in strides):
        return tensor
    return torch.empty_like(weight).copy_(tensor)


def matrix(weight):
    """View a weight as c_out x the rest, in the order that it has in memory, contiguous or channels-last.

    Which column is which does not matter here. Raises RuntimeError for any other order.
    """
    return (weight if weight.is_contiguous() else weight.movedim(1, -1)).view(weight.shape[0], -1)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; equal-shaped weights are updated together.

    `lr` may be a tensor. An update's root mean square is that of an AdamW update with the same learning rate.
    """

    def __init__(self, parameters, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """Update all weights from their gradients."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for weight in group["params"]:
                by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights, group):
        for weight in weights:
            momentum = self.state[weight].get("momentum")
            self.state[weight]["momentum"] = torch.zeros_like(weight) if momentum is None else lain_as(momentum, weight)
        momenta = [matrix(self.state[weight]["momentum"]) for weight in weights]
        gradients = [matrix(lain_as(weight.grad, weight)) for weight in weights]
        weights = [matrix(weight) for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonalize(ahead, group["lr"] * ADAMW_RMS * max(ahead.shape[1:]) ** 0.5)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, updates.unbind())
