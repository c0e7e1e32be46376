"""Re-parameterization: a 3x3 convolution grown into linear branches for training, and collapsed again.

Between two non-linearities, everything here is linear, so each group of branches equals one 3x3 convolution. This gives
three views of a training form's weights:

- `form="branches"` runs every branch as its own convolution, as the method is described and counted;
- `form="collapsed"` composes all 3x3 kernels from the branch weights in every forward pass and runs the plain network
  with them: the same output, the same gradients, several times less work;
- `fuse()` composes the kernels once and returns the plain network.

Sources: RepMBConv, PlainUSR (Wang et al., ACCV 2024); the convolution without gate is SPAN's (Wan et al., CVPRW 2024).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

EXPANSION = 2
FORMS = ("collapsed", "branches")
Parameters = dict[str, Tensor]


def pad_with_bias(features: Tensor, bias: Tensor | None) -> Tensor:
    """Pad B x C x H x W by one pixel of `bias`, which the preceding 1x1 convolution would give on zeros."""
    assert bias is not None
    bias = bias.view(1, -1, 1, 1)
    return F.pad(features - bias, (1, 1, 1, 1)) + bias


def compose(p: Parameters, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Collapse a 1x1, a 3x3 and a 1x1 convolution, of parameters `p` by name, into the (kernel, bias) of one 3x3.

    A gate, one factor per channel, multiplies the output of the 3x3 convolution; its input is then added.
    kernel[o, tap, i] = sum over m, n of reduce[o, m] weight[m, tap, n] expand[n, i]. Reducing first keeps the products
    small. With taps before channels, each is one product, and weights in channels-last memory are not copied.
    """
    weight, expand, reduce = (p[f"{name}.weight"] for name in ("conv", "expand", "reduce"))
    reduce, expand = reduce.flatten(1), expand.flatten(1)
    gated = reduce if gate is None else reduce * gate
    reduced = (gated @ weight.permute(0, 2, 3, 1).flatten(1)).unflatten(1, (9, -1))  # c_out x 9 x mid_in
    if gate is not None:
        reduced = add_at_center(reduced, reduce)
    kernel = (reduced.flatten(0, 1) @ expand).unflatten(0, (-1, 9))  # c_out x 9 x c_in
    return kernel, gated @ p["conv.bias"] + reduced.sum(1) @ p["expand.bias"] + p["reduce.bias"]


def add_at_center(taps: Tensor, weight_1x1: Tensor) -> Tensor:
    """Add a parallel 1x1 convolution's c_out x c_in weights to the middle one of c_out x 9 x c_in taps."""
    return taps + F.pad(weight_1x1[:, None], (0, 0, 4, 4))


def as_kernel(taps: Tensor) -> Tensor:
    """View c_out x 9 x c_in taps as a c_out x c_in x 3 x 3 kernel."""
    return taps.unflatten(1, (3, 3)).permute(0, 3, 1, 2)


class RepMBConv(nn.Module):
    """1x1 expand, 3x3, 1x1 reduce, and a parallel 1x1: B x c_in x H x W to B x c_out x H x W."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        mid_in, mid_out = EXPANSION * c_in, EXPANSION * c_out
        self.expand = nn.Conv2d(c_in, mid_in, 1)
        self.conv = nn.Conv2d(mid_in, mid_out, 3)
        self.reduce = nn.Conv2d(mid_out, c_out, 1)
        self.parallel = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_with_bias(self.expand(x), self.expand.bias)
        return self.reduce(self.conv(padded)) + self.parallel(x)

    @staticmethod
    def collapse(p: Parameters) -> tuple[Tensor, Tensor]:
        """Return (kernel, bias) of the equal 3x3 convolution from the block's parameters `p`, by name."""
        taps, bias = compose(p)
        return as_kernel(add_at_center(taps, p["parallel.weight"].flatten(1))), bias + p["parallel.bias"]


class GatedRepMBConv(nn.Module):
    """The feature extractor: expand, 3x3 times a learned gate plus the expanded features, reduce, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        mid = EXPANSION * channels
        self.expand = nn.Conv2d(channels, mid, 1)
        self.conv = nn.Conv2d(mid, mid, 3)
        self.reduce = nn.Conv2d(mid, channels, 1)
        self.gate_token = nn.Parameter(torch.full((mid,), 0.1))
        self.gate_squeeze = nn.Parameter(torch.ones(mid // 4, mid))
        self.gate_excite = nn.Parameter(torch.ones(mid, mid // 4))

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.expand(x)
        padded = pad_with_bias(expanded, self.expand.bias)
        gate = self.gate(dict(self.named_parameters())).view(1, -1, 1, 1)
        return self.reduce(self.conv(padded) * gate + expanded) + x

    @staticmethod
    def gate(p: Parameters) -> Tensor:
        """Return one factor in (0, 1) per expanded channel; it depends only on the weights, never on the image."""
        squeezed = F.silu(F.linear(p["gate_token"][None], p["gate_squeeze"]))
        return torch.sigmoid(F.linear(squeezed, p["gate_excite"]))[0]

    @staticmethod
    def collapse(p: Parameters) -> tuple[Tensor, Tensor]:
        """Return (kernel, bias) of the equal 3x3 convolution from the block's parameters `p`, by name."""
        taps, bias = compose(p, GatedRepMBConv.gate(p))
        identity = torch.eye(taps.shape[0], dtype=taps.dtype, device=taps.device)
        return as_kernel(add_at_center(taps, identity)), bias


def stack(weights: list[Tensor]) -> Tensor:
    """Stack weights of one shape; kernels lie in channels-last memory, as they should before."""
    if weights[0].ndim < 4:
        return torch.stack(weights)
    return torch.stack([weight.permute(0, 2, 3, 1) for weight in weights]).permute(0, 1, 4, 2, 3)


class Reparameterized(nn.Module):
    """The base class of training forms; a form inherits from this and from its plain network, in this order.

    Its constructor calls the plain network's and then `grow`.
    """

    def grow(
        self,
        grown: Callable[[str, nn.Conv2d], nn.Module | None],
        make_plain: Callable[[], nn.Module],
        form: str,
    ) -> None:
        """Replace convolutions by branches: `grown(name, conv)` gives a RepMBConv, a GatedRepMBConv, or None.

        `make_plain()` builds the plain network.
        """
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d) and (branches := grown(name, module)):
                self.set_submodule(name, branches)
        self._make_plain = make_plain
        # The plain network that runs composed kernels; in a tuple, so that its unused weights are not registered.
        with torch.device("meta"):
            self._frame: tuple[nn.Module] = (make_plain(),)
        self.set_form(form)

    def set_form(self, form: str) -> None:
        """Choose how the forward pass runs; the weights do not change. Raises ValueError for an unknown form."""
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
        self.form = form

    def map_plain(self, function: Callable[[nn.Module], nn.Module]) -> None:
        """Replace the plain network that runs the composed kernels by `function` of it."""
        self._frame = (function(self._frame[0]),)

    def forward(self, lr: Tensor) -> Tensor:
        if self.form == "branches":
            return super().forward(lr)
        with torch.autocast(lr.device.type, enabled=False):  # composed in low precision, kernels would be rounded twice
            state = self.collapsed_state()
        return functional_call(self._frame[0], {**state, **dict(self.named_buffers())}, lr)

    def collapsed_state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the plain network's state dict, composed from this one's weights and differentiable by them.

        It is composed in `dtype`, by default the weights' own, and has it. Blocks of one shape are composed together,
        in a few large products instead of many small ones.
        """
        groups: dict[Any, list[tuple[str, Parameters]]] = defaultdict(list)
        inside = []
        for name, module in self.named_modules():
            if isinstance(module, (RepMBConv, GatedRepMBConv)):
                parameters = {key: value.to(dtype=dtype) for key, value in module.named_parameters()}
                groups[type(module), module.conv.weight.shape].append((name, parameters))
                inside.append(f"{name}.")
        outside = (item for item in self.named_parameters() if not item[0].startswith(tuple(inside)))
        state = {key: value.to(dtype=dtype) for key, value in outside}
        for (kind, _), blocks in groups.items():
            stacked = {key: stack([p[key] for _, p in blocks]) for key in blocks[0][1]}
            kernels, biases = vmap(kind.collapse)(stacked)
            for (name, _), kernel, bias in zip(blocks, kernels.unbind(), biases.unbind(), strict=True):
                state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias
        return state

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the plain network with the same output, dtype and device; this network stays untouched.

        Kernels are composed in float64 and rounded once: in float32, sums of thousands of products would be ten times
        as far from the exact ones.
        """
        like = next(self.parameters())
        fused = self._make_plain().to(like.device, like.dtype)
        fused.load_state_dict(self.collapsed_state(torch.float64))
        return fused.train(self.training)
