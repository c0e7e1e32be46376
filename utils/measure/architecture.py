"""The data flow among a network's blocks, traced in one pass, from which its diagram is drawn."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from utils.typed import Count

MOST_BLOCKS = 512
SIDE = 32  # of the input [pixels]
INPUT = -1  # among sources: the network's input
Sources = Annotated[list[Annotated[int, Meta(ge=INPUT, lt=MOST_BLOCKS)]], Meta(max_length=MOST_BLOCKS)]


class Block(Struct, kw_only=True, forbid_unknown_fields=True):
    """A call of a block: a child of the network, or of a Sequential or ModuleList in it.

    `kind` is its class. `in_channels` and `out_channels` are those of its first input and output. `scale` is the side
    of its output relative to the network's input. `convs` and `params` count its contents. `sources` are the indices
    of the calls whose outputs reach it without passing another block; INPUT is the network's input.
    """

    name: Annotated[str, Meta(max_length=200)]
    kind: Annotated[str, Meta(max_length=200)]
    in_channels: Count
    out_channels: Count
    scale: Annotated[float, Meta(gt=0, lt=1e6)]
    convs: Count
    params: Count
    sources: Sources


class Architecture(Struct, kw_only=True, forbid_unknown_fields=True):
    """A pass through a network: its blocks in the order of their calls, and the sources of its output."""

    blocks: Annotated[list[Block], Meta(max_length=MOST_BLOCKS)]
    sources: Sources


def traced_architecture(network: nn.Module, device: torch.device, data_range: float = 1.0) -> Architecture:
    """Return the architecture of a network that takes 1 x 3 x H x W in [0, data_range].

    The sources of a block are read from the autograd graph. Where the graph is cut, the previous call is the source.
    """
    blocks: list[Block] = []
    makers: dict[Any, int] = {}  # the autograd node of an output, and the call that it came from
    reached: dict[nn.Module, list[int]] = {}  # the sources of the call that is under way

    def sources_of(tensors: Iterable[Tensor]) -> list[int]:
        found, seen, waiting = set(), set(), [tensor.grad_fn for tensor in tensors if tensor.requires_grad]
        while waiting:
            node = waiting.pop()
            if node in makers:
                found.add(makers[node])
            elif node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        return sorted(found) or [len(blocks) - 1]

    def before_call(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        reached[module] = sources_of(_tensors(inputs))

    def after_call(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given, made = list(_tensors(inputs)), list(_tensors(output))
        if not given or not made or len(blocks) == MOST_BLOCKS:
            return
        convs = sum(isinstance(inner, nn.Conv2d) for inner in module.modules())
        blocks.append(
            Block(
                name=name[:200],
                kind=type(module).__name__[:200],
                in_channels=_channels(given[0]),
                out_channels=_channels(made[0]),
                scale=made[0].shape[-1] / SIDE,
                convs=convs,
                params=sum(parameter.numel() for parameter in module.parameters()),
                sources=reached[module],
            )
        )
        makers.update((tensor.grad_fn, len(blocks) - 1) for tensor in made if tensor.grad_fn is not None)

    handles = []
    for name, block in _blocks(network):
        handles.append(block.register_forward_pre_hook(before_call))
        handles.append(
            block.register_forward_hook(
                lambda module, inputs, output, name=name: after_call(name, module, inputs, output)
            )
        )
    lr = torch.rand(1, 3, SIDE, SIDE, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            scaled = lr * data_range
            makers[scaled.grad_fn] = INPUT
            sources = sources_of(_tensors(network(scaled)))
    finally:
        for handle in handles:
            handle.remove()
    return Architecture(blocks=blocks, sources=sources)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of the children, with containers replaced by their own children."""
    for name, child in module.named_children():
        if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _channels(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 1
