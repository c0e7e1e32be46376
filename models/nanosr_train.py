"""NanoSR's training form: the fused network with each 3x3 convolution (but the upsampler) grown into linear branches.

Between two non-linearities everything here is linear, so each group of branches is one 3x3 convolution. That gives
three views of the same weights:

- `NanoSR_train(form="branches")` runs every branch as its own convolution, as the method is described and counted;
- `NanoSR_train(form="collapsed")` composes the 3x3 kernel from the branch weights in every forward pass and runs one
  convolution: the same output, the same gradients, several times less work;
- `NanoSR_train.fuse()` composes the kernels once and returns the plain `NanoSR_inference`.

Sources: RepMBConv, PlainUSR (Wang et al., ACCV 2024); its use in NanoSR, the NTIRE 2025 Efficient SR report.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from models.team07_NanoSR import SCALE, Conv3x3, NanoSR_inference

EXPANSION = 2
FORMS = ("collapsed", "branches")


def _pad_with_bias(features, bias):
    """Surround B x C x H x W by one pixel of `bias`: what the 1x1 convolution before would give on a zero."""
    padded = F.pad(features - bias.view(1, -1, 1, 1), (1, 1, 1, 1))
    return padded + bias.view(1, -1, 1, 1)


def _compose(expand, weight, bias, reduce):
    """Collapse 1x1 `expand`, 3x3 (`weight`, `bias`) and 1x1 `reduce` into one 3x3 kernel and bias.

    kernel[o, i] = sum over m, n of reduce[o, m] weight[m, n] expand[n, i]; reducing first keeps the products small.
    """
    mid_out, mid_in = weight.shape[:2]
    reduced = (reduce.weight.flatten(1) @ weight.reshape(mid_out, -1)).view(-1, mid_in, 9)  # c_out x mid_in x 9
    kernel = torch.einsum("omk,mi->oik", reduced, expand.weight.flatten(1)).unflatten(2, (3, 3))
    total = reduce.weight.flatten(1) @ bias + reduced.sum(2) @ expand.bias + reduce.bias
    return kernel, total


def _add_at_center(kernel, weight_1x1):
    """Add c_out x c_in weights of a parallel 1x1 convolution to the middle tap of a c_out x c_in x 3 x 3 kernel."""
    return kernel + F.pad(weight_1x1[..., None, None], (1, 1, 1, 1))


class _Reparameterized(nn.Module):
    """A group of linear branches: subclasses give `branches(x)` and `collapse() -> (kernel, bias)`."""

    form = "collapsed"

    def forward(self, x):
        if self.form == "branches":
            return self.branches(x)
        with torch.autocast(x.device.type, enabled=False):  # a kernel rounded three times would lose more than the data
            kernel, bias = self.collapse()
        return F.conv2d(x, kernel, bias, padding=1)

    def fuse(self):
        """Return the plain 3x3 `nn.Conv2d` that computes the same; this module stays as it is."""
        kernel, bias = self.collapse()
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, dtype=kernel.dtype, device=kernel.device)
        conv.load_state_dict({"weight": kernel.detach(), "bias": bias.detach()})
        return conv


class RepMBConv(_Reparameterized):
    """1x1 expand, 3x3, 1x1 reduce, and a parallel 1x1: B x c_in x H x W to B x c_out x H x W."""

    def __init__(self, c_in, c_out):
        super().__init__()
        mid_in, mid_out = EXPANSION * c_in, EXPANSION * c_out
        self.expand = nn.Conv2d(c_in, mid_in, 1)
        self.conv = nn.Conv2d(mid_in, mid_out, 3)
        self.reduce = nn.Conv2d(mid_out, c_out, 1)
        self.parallel = nn.Conv2d(c_in, c_out, 1)

    def branches(self, x):
        padded = _pad_with_bias(self.expand(x), self.expand.bias)
        return self.reduce(self.conv(padded)) + self.parallel(x)

    def collapse(self):
        kernel, bias = _compose(self.expand, self.conv.weight, self.conv.bias, self.reduce)
        return _add_at_center(kernel, self.parallel.weight.flatten(1)), bias + self.parallel.bias


class GatedRepMBConv(_Reparameterized):
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

    def gate(self):
        """One factor in (0, 1) per expanded channel; it depends on the weights alone, never on the image."""
        squeezed = F.silu(F.linear(self.gate_token[None], self.gate_squeeze))
        return torch.sigmoid(F.linear(squeezed, self.gate_excite))[0]

    def branches(self, x):
        expanded = self.expand(x)
        padded = _pad_with_bias(expanded, self.expand.bias)
        gated = self.conv(padded) * self.gate().view(1, -1, 1, 1)
        return self.reduce(gated + expanded) + x

    def collapse(self):
        gate = self.gate()
        identity = torch.eye(gate.numel(), dtype=gate.dtype, device=gate.device)
        weight = _add_at_center(self.conv.weight * gate.view(-1, 1, 1, 1), identity)
        kernel, bias = _compose(self.expand, weight, self.conv.bias * gate, self.reduce)
        return _add_at_center(kernel, torch.eye(kernel.shape[0], dtype=gate.dtype, device=gate.device)), bias


class NanoSR_train(NanoSR_inference):
    """NanoSR with re-parameterized convolutions: B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W, about [0, 1].

    `form` is "collapsed" (one composed convolution per group) or "branches" (every branch a module call).
    """

    def __init__(self, num_in_ch=3, num_out_ch=3, form="collapsed"):
        super().__init__(num_in_ch, num_out_ch)
        for name, module in self.named_modules():
            if isinstance(module, Conv3x3):
                c_in, c_out = module.conv.in_channels, module.conv.out_channels
                module.conv = GatedRepMBConv(c_in) if name.endswith("feature_extractor") else RepMBConv(c_in, c_out)
        self.set_form(form)

    def set_form(self, form):
        """Choose how the forward pass runs; the weights do not change. Raises ValueError for an unknown form."""
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
        for module in self.modules():
            if isinstance(module, _Reparameterized):
                module.form = form

    @torch.no_grad()
    def fuse(self):
        """Return the `NanoSR_inference` with the same output, dtype and device; this network stays untouched."""
        fused = NanoSR_inference(self.conv_1.conv.expand.in_channels, self.upsampler[0].out_channels // SCALE**2)
        fused.mean.data = self.mean.clone()
        fused.conv_cat = deepcopy(self.conv_cat)
        fused.upsampler = deepcopy(self.upsampler)
        for name, module in self.named_modules():
            if isinstance(module, _Reparameterized):
                fused.set_submodule(name, module.fuse())
        return fused.train(self.training)
