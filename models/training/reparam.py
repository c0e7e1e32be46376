"""Re-parameterization: a 3x3 convolution grown into linear branches for training, and collapsed again.

Between two non-linearities everything here is linear, so each group of branches is one 3x3 convolution. That gives
three views of the same weights of a training form:

- `form="branches"` runs every branch as its own convolution, as the method is described and counted;
- `form="collapsed"` composes all 3x3 kernels from the branch weights in every forward pass and runs the plain network
  with them: the same output, the same gradients, several times less work;
- `fuse()` composes the kernels once and returns the plain network.

Sources: RepMBConv, PlainUSR (Wang et al., ACCV 2024); the convolution without gate is SPAN's (Wan et al., CVPRW 2024).
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

EXPANSION = 2
FORMS = ("collapsed", "branches")


def pad_with_bias(features, bias):
    """Surround B x C x H x W by one pixel of `bias`: what the 1x1 convolution before would give on a zero."""
    bias = bias.view(1, -1, 1, 1)
    return F.pad(features - bias, (1, 1, 1, 1)) + bias


def compose(expand, expand_bias, weight, bias, reduce, reduce_bias):
    """Collapse a 1x1, a 3x3 and a 1x1 convolution into the (kernel, bias) of one 3x3 convolution.

    kernel[o, i] = sum over m, n of reduce[o, m] weight[m, n] expand[n, i]; reducing first keeps the products small.
    """
    mid_out, mid_in = weight.shape[:2]
    reduced = (reduce.flatten(1) @ weight.reshape(mid_out, -1)).view(-1, mid_in, 9)  # c_out x mid_in x 9
    taps = reduced.transpose(1, 2).reshape(-1, mid_in) @ expand.flatten(1)  # 9 c_out x c_in, one product for all taps
    kernel = taps.unflatten(0, (-1, 3, 3)).permute(0, 3, 1, 2)  # c_out x c_in x 3 x 3
    return kernel, reduce.flatten(1) @ bias + reduced.sum(2) @ expand_bias + reduce_bias


def add_at_center(kernel, weight_1x1):
    """Add a parallel 1x1 convolution's c_out x c_in weights to the middle tap of a c_out x c_in x 3 x 3 kernel."""
    return kernel + F.pad(weight_1x1[..., None, None], (1, 1, 1, 1))


class RepMBConv(nn.Module):
    """1x1 expand, 3x3, 1x1 reduce, and a parallel 1x1: B x c_in x H x W to B x c_out x H x W."""

    def __init__(self, c_in, c_out):
        super().__init__()
        mid_in, mid_out = EXPANSION * c_in, EXPANSION * c_out
        self.expand = nn.Conv2d(c_in, mid_in, 1)
        self.conv = nn.Conv2d(mid_in, mid_out, 3)
        self.reduce = nn.Conv2d(mid_out, c_out, 1)
        self.parallel = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        padded = pad_with_bias(self.expand(x), self.expand.bias)
        return self.reduce(self.conv(padded)) + self.parallel(x)

    @staticmethod
    def collapse(p):
        """Return (kernel, bias) of the equal 3x3 convolution from the block's parameters `p`, by name."""
        kernel, bias = compose(
            p["expand.weight"], p["expand.bias"], p["conv.weight"], p["conv.bias"], p["reduce.weight"], p["reduce.bias"]
        )
        return add_at_center(kernel, p["parallel.weight"].flatten(1)), bias + p["parallel.bias"]


class GatedRepMBConv(nn.Module):
    """The feature extractor: expand, 3x3 times a learned gate plus the expanded features, reduce, plus the input."""

    def __init__(self, channels):
        super().__init__()
        mid = EXPANSION * channels
        self.expand = nn.Conv2d(channels, mid, 1)
        self.conv = nn.Conv2d(mid, mid, 3)
        self.reduce = nn.Conv2d(mid, channels, 1)
        self.gate_token = nn.Parameter(torch.full((mid,), 0.1))
        self.gate_squeeze = nn.Parameter(torch.ones(mid // 4, mid))
        self.gate_excite = nn.Parameter(torch.ones(mid, mid // 4))

    def forward(self, x):
        expanded = self.expand(x)
        padded = pad_with_bias(expanded, self.expand.bias)
        gate = self.gate(dict(self.named_parameters())).view(1, -1, 1, 1)
        return self.reduce(self.conv(padded) * gate + expanded) + x

    @staticmethod
    def gate(p):
        """One factor in (0, 1) per expanded channel; it depends on the weights alone, never on the image."""
        squeezed = F.silu(F.linear(p["gate_token"][None], p["gate_squeeze"]))
        return torch.sigmoid(F.linear(squeezed, p["gate_excite"]))[0]

    @staticmethod
    def collapse(p):
        """Return (kernel, bias) of the equal 3x3 convolution from the block's parameters `p`, by name."""
        gate = GatedRepMBConv.gate(p)
        weight = add_at_center(p["conv.weight"] * gate.view(-1, 1, 1, 1), _identity(gate.numel(), gate))
        kernel, bias = compose(
            p["expand.weight"], p["expand.bias"], weight, p["conv.bias"] * gate, p["reduce.weight"], p["reduce.bias"]
        )
        return add_at_center(kernel, _identity(kernel.shape[0], gate)), bias


def _identity(size, like):
    return torch.eye(size, dtype=like.dtype, device=like.device)


class Reparameterized(nn.Module):
    """What training forms share; a form is a class of this and of its plain network, in this order.

    Its constructor calls the plain network's and then `grow`.
    """

    def grow(self, grown, make_plain, form):
        """Replace convolutions by branches: `grown(name, conv)` gives a RepMBConv, a GatedRepMBConv, or None.

        `make_plain()` builds the plain network.
        """
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d) and (branches := grown(name, module)):
                self.set_submodule(name, branches)
        self._make_plain = make_plain
        # The frame that runs composed kernels; in a tuple, so that its own unused weights are nobody's parameters.
        with torch.device("meta"):
            self._frame = (make_plain(),)
        self.set_form(form)

    def set_form(self, form):
        """Choose how the forward pass runs; the weights do not change. Raises ValueError for an unknown form."""
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
        self.form = form

    def map_plain(self, function):
        """Run composed kernels by what `function` returns of the plain network that runs them now."""
        self._frame = (function(self._frame[0]),)

    def forward(self, lr):
        if self.form == "branches":
            return super().forward(lr)
        with torch.autocast(lr.device.type, enabled=False):  # composed in low precision, kernels would be rounded twice
            state = self.collapsed_state()
        return functional_call(self._frame[0], {**state, **dict(self.named_buffers())}, lr)

    def collapsed_state(self):
        """Return the plain network's state dict, composed from this one's weights and differentiable by them.

        Blocks of one shape are composed together, in a few large products instead of many small ones.
        """
        groups, inside = defaultdict(list), []
        for name, module in self.named_modules():
            if isinstance(module, (RepMBConv, GatedRepMBConv)):
                groups[type(module), module.conv.weight.shape].append((name, dict(module.named_parameters())))
                inside.append(f"{name}.")
        state = {key: value for key, value in self.named_parameters() if not key.startswith(tuple(inside))}
        for (kind, _), blocks in groups.items():
            stacked = {key: torch.stack([p[key] for _, p in blocks]) for key in blocks[0][1]}
            kernels, biases = vmap(kind.collapse)(stacked)
            for (name, _), kernel, bias in zip(blocks, kernels.unbind(), biases.unbind(), strict=True):
                state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias
        return state

    @torch.no_grad()
    def fuse(self):
        """Return the plain network with the same output, dtype and device; this network stays untouched."""
        state = self.collapsed_state()
        like = next(iter(state.values()))
        fused = self._make_plain().to(like.device, like.dtype)
        fused.load_state_dict(state)
        return fused.train(self.training)
