"""Averages: of weights over steps, and of gradients over processes."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = list[Tensor] | tuple[Tensor, ...]


def running_average(model: nn.Module, share: Callable[[], float]) -> AveragedModel:
    """Return a running average of a model's weights and buffers, such as a BatchNorm's statistics.

    Each update moves its values towards the model's by the fraction `share()`. Integers, such as a count of batches,
    are copied.
    """

    def follow(ours: Tensors, theirs: Tensors, _count: Tensor | int) -> None:
        if ours[0].is_floating_point():  # they come grouped by dtype
            torch._foreach_lerp_(ours, theirs, share())
        else:
            torch._foreach_copy_(ours, theirs)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True).requires_grad_(False)
    average.n_averaged.fill_(1)  # the initial weights count as the first: by default they would be forgotten at once
    return average


def average_over_processes(tensors: list[Tensor]) -> None:
    """Replace float32 tensors by their means over all processes, in one exchange.

    DistributedDataParallel would hide the exchange behind the backward pass, which small networks do not need.
    """
    means = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(means)
    means /= dist.get_world_size()
    parts = means.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])
