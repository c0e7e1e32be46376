"""A network whose convolutions, where they can be, are those of convolution.py: `with_own_convolutions(network, lr)`.

torch.fx writes the network's forward pass down as a graph; there, convolutions are exchanged, together with a SiLU or
the parameter-free attention of SPAN and NanoSR behind them. Weights stay those of the network. What a graph does not
hold, such as a part without gradients, would be lost: so both are tried, and must agree.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import fx, nn

from training.cpu.convolution import convolve, convolve_attention, convolve_silu, is_possible

# Of a network with a hundred convolutions in bfloat16, against the same by other convolutions.
OUTPUT_ERROR, GRADIENT_ERROR = 0.05, 0.2
SMALL_PART = 0.01  # of the whole gradient, below which a weight's is left to chance

fx.wrap("convolve")
fx.wrap("convolve_silu")
fx.wrap("convolve_attention")


def with_own_convolutions(network, lr):
    """Return what runs in a network's place: itself, if its forward pass cannot be written down, or does otherwise.

    `lr` B x 3 x H x W is tried first. A training form that runs collapsed is returned itself, and its plain network
    runs exchanged.
    """
    try:
        usual, copy = deepcopy(network), deepcopy(network)
        agree = in_agreement(there_and_back(usual, usual, lr), there_and_back(copy, exchanged(copy), lr))
    except Exception:  # of any kind, since the network's own code runs; the first step says what is wrong with it
        return network
    return exchanged(network) if agree else network


def there_and_back(network, run, lr):
    """Return what `run` gives of a batch in bfloat16, and a random gradient's way back to the network's weights."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)  # for networks that draw at random, too
        sr = run(lr).float()
        return sr.detach(), torch.autograd.grad(sr, weights, torch.randn(sr.shape), allow_unused=True)


def in_agreement(usual, other):
    """Whether two networks' outputs and gradients are the same but for rounding to bfloat16."""
    (sr, gradients), (other_sr, others) = usual, other
    if [gradient is None for gradient in gradients] != [gradient is None for gradient in others]:
        return False
    pairs = [(a, b) for a, b in zip(gradients, others, strict=True) if a is not None]
    whole = torch.stack([a.norm() for a, _ in pairs]).norm()
    close = [(b - a).norm() <= GRADIENT_ERROR * a.norm() + SMALL_PART * whole for a, b in pairs]
    return all(close) and bool((other_sr - sr).norm() <= OUTPUT_ERROR * sr.norm())


def exchanged(network):
    """Exchange a network's convolutions; return what runs in its place."""
    if callable(getattr(network, "map_plain", None)):
        network.map_plain(rewritten)
        return network
    return rewritten(network)


def rewritten(network):
    """Return the network's graph with convolutions exchanged; the network itself if it cannot be traced."""
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # of any kind, since its own code runs: its path hangs on what it computes, or it is at fault
        return network
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d) and is_made_here(module):
            with traced.graph.inserting_before(node):
                weight = traced.graph.get_attr(f"{node.target}.weight")
                bias = None if module.bias is None else traced.graph.get_attr(f"{node.target}.bias")
                new = traced.graph.call_function(convolve, (node.args[0], weight, bias))
        elif isinstance(module, nn.SiLU) and not module.inplace:
            with traced.graph.inserting_before(node):
                new = traced.graph.call_function(F.silu, (node.args[0],), {"inplace": False})
        else:
            continue
        node.replace_all_uses_with(new)
        traced.graph.erase_node(node)
    traced.recompile()
    for pattern, replacement in PATTERNS:
        fx.replace_pattern(traced, pattern, replacement)
    return traced


def is_made_here(module):
    """Whether `convolve` does what a convolution does."""
    ways = module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
    plain = ways == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and is_possible(module.in_channels, module.out_channels)


def attention(x, weight, bias, other):
    """The parameter-free attention, as models write it."""
    z = convolve(x, weight, bias)
    return (z + other) * (torch.sigmoid(z) - 0.5)


# What is looked for in a graph, and what takes its place: functions that call it, since fx would look into it itself.
PATTERNS = (
    (lambda x, weight, bias: F.silu(convolve(x, weight, bias)), lambda x, weight, bias: convolve_silu(x, weight, bias)),
    (attention, lambda x, weight, bias, other: convolve_attention(x, weight, bias, other)),
)
