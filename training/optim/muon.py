"""Muon: momentum whose update is orthogonalized, for the convolutions between hidden features.

Each weight is seen as a c_out x (c_in k k) matrix. Its momentum is replaced by the nearest matrix with singular values
about 1, so that directions with small gradients move as far as those with large ones. Source: K. Jordan et al., "Muon:
An optimizer for hidden layers in neural networks" (2024); the scale to AdamW's update: J. Liu et al., "Muon is Scalable
for LLM Training" (2025). torch.optim.Muon takes matrices only, one after the other; here all kernels of one shape are
orthogonalized in one product.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz step, from the first source
STEPS = 5
ADAMW_RMS = 0.2  # root mean square of an AdamW update at learning rate 1, from the second source


def orthogonalize(stacks: list[Tensor], scales: list[Tensor | float]) -> list[Tensor]:
    """Orthogonalize N x R x C stacks of matrices: keep singular vectors, make singular values about the stack's scale.

    Singular values become 0.7 to 1.2 times the scale. Each Newton-Schulz step multiplies x by a polynomial of x x'. All
    of these are polynomials of the first x x'. So only this small square matrix is iterated, for all stacks with the
    same shorter side together, and the product of the polynomials is applied once. The computation is in float32, since
    x x' holds small singular values squared. Results have the dtype of their stack.
    """
    wide = [stack.float() if stack.shape[1] <= stack.shape[2] else stack.mT.float() for stack in stacks]
    grams = [x @ x.mT for x in wide]
    squares = [gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-14)[:, None, None] for gram in grams]  # of the norms
    by_side = defaultdict(list)
    for number, gram in enumerate(grams):
        by_side[gram.shape[1]].append(number)
    results = list(stacks)
    for numbers in by_side.values():
        products = polynomials(torch.cat([grams[number] / squares[number] for number in numbers]))
        for number, product in zip(numbers, products.split([len(grams[number]) for number in numbers]), strict=True):
            x = (product * (scales[number] * squares[number].rsqrt())) @ wide[number]
            results[number] = (x if x.shape == stacks[number].shape else x.mT).to(stacks[number].dtype)
    return results


def polynomials(gram: Tensor) -> Tensor:
    """Return the matrix that all steps together multiply x by, from x x' of a normalized x."""
    a, b, c = QUINTIC
    product: Tensor | None = None
    for step in range(STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step + 1 < STEPS:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return product


def lain_as(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor in a weight's memory layout, itself if it already is. Strides of sides of 1 do not matter."""
    strides = zip(weight.shape, tensor.stride(), weight.stride(), strict=True)
    if all(side == 1 or given == wanted for side, given, wanted in strides):
        return tensor
    return torch.empty_like(weight).copy_(tensor)


def matrix(weight: Tensor) -> Tensor:
    """View a weight as c_out x the rest, in memory order, contiguous or channels-last.

    The order of the columns does not matter here. Raise RuntimeError for any other memory order.
    """
    return (weight if weight.is_contiguous() else weight.movedim(1, -1)).view(weight.shape[0], -1)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; equal-shaped weights are updated together.

    `lr` may be a tensor. An update's root mean square is that of an AdamW update with the same learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: Tensor | float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all weights from their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            stacks = [self._directions(weights, group["momentum"]) for weights in by_shape.values()]
            scales = [group["lr"] * ADAMW_RMS * max(stack.shape[1:]) ** 0.5 for stack in stacks]
            for weights, updates in zip(by_shape.values(), orthogonalize(stacks, scales), strict=True):
                weights = [matrix(weight) for weight in weights]
                if group["weight_decay"]:
                    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(weights, updates.unbind())

    def _directions(self, weights: list[Tensor], share: float) -> Tensor:
        """Move the momenta of weights of one shape; return Nesterov's directions as a stack of matrices."""
        for weight in weights:
            momentum = self.state[weight].get("momentum")
            self.state[weight]["momentum"] = torch.zeros_like(weight) if momentum is None else lain_as(momentum, weight)
        momenta = [matrix(self.state[weight]["momentum"]) for weight in weights]
        gradients = [matrix(lain_as(weight.grad, weight)) for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - share)
        return torch.stack(torch._foreach_lerp(gradients, momenta, share))


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the convolution kernels between hidden features, which Muon is made for.

    Left out are the parts that touch the image: the direct children of the network that hold its first and its last
    convolution. Grouped convolutions are left out, too, since their kernel is not one matrix.
    """
    modules = ((name.partition(".")[0], module) for name, module in model.named_modules())
    convolutions = [(part, module) for part, module in modules if isinstance(module, nn.Conv2d)]
    outer = {part for part, _ in (*convolutions[:1], *convolutions[-1:])}
    kernels = {id(module.weight) for part, module in convolutions if part not in outer and module.groups == 1}
    return [weight for weight in model.parameters() if id(weight) in kernels]
