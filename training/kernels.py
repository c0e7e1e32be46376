"""Replace a network's 3x3 convolutions by a kernel of `kernels/convolution.py`: `with_kernel(network, lr, kernel)`.

torch.fx traces the network's forward pass into a graph. In the graph, convolutions are replaced, each together with a
SiLU or the parameter-free attention of SPAN and NanoSR that follows it. The weights remain those of the network. A
graph loses whatever it cannot hold, such as a part without gradients. So both versions are run once and must agree.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kernels.convolution import Name, convolve, convolve_attention, convolve_silu, takes

# Tolerances, relative, for a network with a hundred convolutions in bfloat16 by different kernels.
OUTPUT_ERROR, GRADIENT_ERROR = 0.05, 0.2
SMALL_PART = 0.01  # of the whole gradient's norm; an error this small in a weight's gradient is always accepted

fx.wrap("convolve")
fx.wrap("convolve_silu")
fx.wrap("convolve_attention")


def with_kernel(network: nn.Module, lr: Tensor, kernel: Name) -> nn.Module | None:
    """Return a module that runs a network by a kernel, with its weights; None if its forward pass does not allow it.

    Both are first compared on the batch `lr` B x 3 x H x W. A collapsed training form is returned itself; the
    convolutions are replaced in its plain network.
    """
    try:
        usual, copy = deepcopy(network), deepcopy(network)
        agree = in_agreement(there_and_back(usual, usual, lr), there_and_back(copy, exchanged(copy, kernel), lr))
    except Exception:  # the network's code may raise anything; if it is broken, the first step will say so
        return None
    return exchanged(network, kernel) if agree else None


Trial = tuple[Tensor, tuple[Tensor | None, ...]]  # an output, and gradients of the network's weights


def there_and_back(network: nn.Module, run: nn.Module, lr: Tensor) -> Trial:
    """Return `run`'s output for a batch in bfloat16, and the weights' gradients from a random output gradient."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)  # for networks that draw at random, too
        sr = run(lr).float()
        return sr.detach(), torch.autograd.grad(sr, weights, torch.randn(sr.shape), allow_unused=True)


def in_agreement(usual: Trial, other: Trial) -> bool:
    """Return whether two networks' outputs and gradients are equal up to bfloat16 rounding."""
    (sr, gradients), (other_sr, others) = usual, other
    if [gradient is None for gradient in gradients] != [gradient is None for gradient in others]:
        return False
    pairs = [(a, b) for a, b in zip(gradients, others, strict=True) if a is not None and b is not None]
    whole = torch.stack([a.norm() for a, _ in pairs]).norm()
    close = [(b - a).norm() <= GRADIENT_ERROR * a.norm() + SMALL_PART * whole for a, b in pairs]
    return all(close) and bool((other_sr - sr).norm() <= OUTPUT_ERROR * sr.norm())


def exchanged(network: nn.Module, kernel: Name) -> nn.Module:
    """Replace a network's convolutions; return the module to run instead. Raise as `rewritten` does."""
    if callable(map_plain := getattr(network, "map_plain", None)):
        map_plain(partial(rewritten, kernel=kernel))
        return network
    return rewritten(network, kernel)


def rewritten(network: nn.Module, kernel: Name) -> fx.GraphModule:
    """Return the network's graph with its convolutions replaced.

    Raise ValueError if there is none to replace. A network that cannot be traced may raise anything, since its own code
    runs.
    """
    traced = fx.symbolic_trace(network)
    count = 0
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d) and is_exchanged(module, kernel):
            count += 1
            with traced.graph.inserting_before(node):
                weight = traced.graph.get_attr(f"{node.target}.weight")
                bias = None if module.bias is None else traced.graph.get_attr(f"{node.target}.bias")
                new = traced.graph.call_function(convolve, (node.args[0], weight, bias, kernel))
        elif isinstance(module, nn.SiLU) and not module.inplace:
            with traced.graph.inserting_before(node):
                new = traced.graph.call_function(F.silu, (node.args[0],), {"inplace": False})
        else:
            continue
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
    if not count:
        raise ValueError("no convolution that the kernel takes")
    traced.recompile()
    for pattern, replacement in patterns(kernel):
        fx.replace_pattern(traced, pattern, replacement)
    return traced


def is_exchanged(module: nn.Conv2d, kernel: Name) -> bool:
    """Return whether a kernel does what a convolution does."""
    ways = module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
    plain = ways == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and takes(kernel, module.in_channels, module.out_channels)


def patterns(kernel: Name) -> list[tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """Return (pattern, replacement) pairs for a graph: SiLU and attention after a convolution.

    The replacements are functions that call the kernel functions, since fx would trace into those themselves.
    """

    def attention(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
        z = convolve(x, weight, bias, kernel)
        return (z + other) * (torch.sigmoid(z) - 0.5)

    return [
        (
            lambda x, weight, bias: F.silu(convolve(x, weight, bias, kernel)),
            lambda x, weight, bias: convolve_silu(x, weight, bias, kernel),
        ),
        (attention, lambda x, weight, bias, other: convolve_attention(x, weight, bias, other, kernel)),
    ]
