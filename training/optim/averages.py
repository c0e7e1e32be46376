"""Means of what a step works on: of weights over steps, and of gradients over processes."""

from itertools import compress

import torch
import torch.distributed as dist


def follow(average, model, share):
    """Move a network's weights by `share` to those of another, and its statistics, such as a BatchNorm's, with them.

    What is no floating-point number, such as the count of batches, is taken over.
    """
    ours, theirs = (list(network.state_dict().values()) for network in (average, model))
    numbers = [tensor.is_floating_point() for tensor in ours]
    torch._foreach_lerp_(list(compress(ours, numbers)), list(compress(theirs, numbers)), share)
    for tensor, other, is_number in zip(ours, theirs, numbers, strict=True):
        if not is_number:
            tensor.copy_(other)


def average_over_processes(tensors):
    """Replace float32 tensors by their means over all processes, in one exchange.

    DistributedDataParallel would hide the exchange behind the backward pass, which small networks do not need.
    """
    means = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(means)
    means /= dist.get_world_size()
    parts = means.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])
