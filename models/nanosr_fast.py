"""NanoSR, fused form, arranged for speed: the function and state-dict keys of `team07_NanoSR.py`, for inference only.

Differences: channels-last memory throughout; a sum of four matrix products instead of concatenation and a 1x1
convolution; activations and attention in place; optionally bfloat16 or float16 arithmetic. On a GPU, an image size that
repeats runs as one CUDA graph, and a convolution and the operation after it can be one Triton kernel. Imports only
torch and, if it is installed, Triton, which comes with torch for GPUs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CHANNELS = 48
SCALE = 4
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
IMG_RANGE = 255.0
MAX_GRAPHS = 8  # sizes whose graphs are kept; each holds its activations
BLOCK = 1024  # values of a Triton program that finishes a convolution
# Of one that convolves: pixels, pairs of tap and channel at a time, and how many such loads are on their way. The
# fastest of 55 settings on an H100.
PIXELS, DEPTH, STAGES = 128, 64, 3
Captured = tuple[torch.cuda.CUDAGraph, Tensor, Tensor]  # the graph, and the memory of its LR and SR image
WIDTH = 64  # output channels that it computes, a power of two: those beyond CHANNELS are not stored


if triton:

    @triton.jit
    def finished(y, bias, x, mask, attends: tl.constexpr, activates: tl.constexpr):  # type: ignore[no-untyped-def]
        """Compute the step after a convolution, in float32: y + bias, its SiLU, or the attention on x."""
        z = y + bias
        if activates:
            z = z * tl.sigmoid(z)
        if attends:
            z = (z + tl.load(x, mask=mask).to(tl.float32)) * (tl.sigmoid(z) - 0.5)
        return z

    @triton.jit
    def finish_kernel(  # type: ignore[no-untyped-def]
        y, bias, x, count, attends: tl.constexpr, activates: tl.constexpr, channels: tl.constexpr, block: tl.constexpr
    ):
        """Finish a convolution's output in its memory: a read and a write of each value."""
        start = tl.program_id(0).to(tl.int64) * block
        offset = tl.arange(0, block)
        inside = start + offset < count
        channel = ((start % channels).to(tl.int32) + offset) % channels
        z = tl.load(y + start + offset, mask=inside).to(tl.float32)
        z = finished(z, tl.load(bias + channel).to(tl.float32), x + start + offset, inside, attends, activates)
        tl.store(y + start + offset, z, mask=inside)

    @triton.jit
    def convolve_kernel(  # type: ignore[no-untyped-def]
        features, weight, bias, x, y, height, width, attends: tl.constexpr, activates: tl.constexpr,
        c_in: tl.constexpr, c_out: tl.constexpr, padded: tl.constexpr, pixels: tl.constexpr, depth: tl.constexpr,
        stages: tl.constexpr,
    ):  # fmt: skip
        """Convolve and finish, channels last, as a product of `pixels` x 9 c_in and 9 c_in x `padded` matrices.

        A column of the first, and a row of the second, is one channel of one of the nine neighbours.
        """
        start = tl.program_id(0) * pixels
        local = tl.arange(0, pixels)
        row, column = (start + local) // width, (start + local) % width
        first = start.to(tl.int64) * c_in
        n = tl.arange(0, padded)
        total = tl.zeros((pixels, padded), tl.float32)
        for k_first in tl.range(0, 9 * c_in, depth, num_stages=stages):
            k = k_first + tl.arange(0, depth)
            down, right = k // c_in // 3 - 1, k // c_in % 3 - 1
            there_row, there_column = row[:, None] + down[None, :], column[:, None] + right[None, :]
            inside = (there_row >= 0) & (there_row < height) & (there_column >= 0) & (there_column < width)
            inside &= (k < 9 * c_in)[None, :]
            offset = (local * c_in)[:, None] + ((down * width + right) * c_in + k % c_in)[None, :]
            a = tl.load(features + first + offset, mask=inside, other=0.0)
            b_inside = (k < 9 * c_in)[:, None] & (n < c_out)[None, :]
            b = tl.load(weight + n[None, :] * (9 * c_in) + k[:, None], mask=b_inside, other=0.0)
            total = tl.dot(a, b, total)
        inside = (start + local < height * width)[:, None] & (n < c_out)[None, :]
        at = start.to(tl.int64) * c_out + (local * c_out)[:, None] + n[None, :]
        shift = tl.load(bias + n, mask=n < c_out, other=0.0).to(tl.float32)[None, :]
        tl.store(y + at, finished(total, shift, x + at, inside, attends, activates), mask=inside)


def convolve(features: Tensor, conv: nn.Conv2d, x: Tensor | None = None, activates: bool = False) -> Tensor:
    """Convolve 1 x C x H x W by a 3x3 convolution and add its bias; then SiLU, or attention to x. Channels last.

    For 16-bit features, this is one Triton kernel. Otherwise cuDNN convolves, which is faster with TF32, and one Triton
    kernel does the rest.
    """
    how = x is not None, activates
    x = features if x is None else x  # not read then
    if features.element_size() > 2 or conv.in_channels % 16:
        y = F.conv2d(features, conv.weight, padding=1)
        finish_kernel[triton.cdiv(y.numel(), BLOCK),](y, conv.bias, x, y.numel(), *how, conv.out_channels, BLOCK)
        return y
    height, width = features.shape[2:]
    y = torch.empty_like(features)
    convolve_kernel[triton.cdiv(height * width, PIXELS),](
        features, conv.weight, conv.bias, x, y, height, width, *how,
        conv.in_channels, conv.out_channels, WIDTH, PIXELS, DEPTH, STAGES,
    )  # fmt: skip
    return y


class Conv3x3(nn.Module):
    """3x3 convolution, zero padding 1, with bias; then nothing, SiLU, or attention: (y + x) * (sigmoid(y) - 0.5).

    With Triton if `in_one`.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor, in_one: bool) -> Tensor:
        return convolve(x, self.conv) if in_one else self.conv(x)

    def activate(self, x: Tensor, in_one: bool) -> Tensor:
        return convolve(x, self.conv, activates=True) if in_one else F.silu(self.conv(x), inplace=True)

    def attend(self, features: Tensor, x: Tensor, in_one: bool) -> Tensor:
        """Weigh x by the convolution of `features`, which may be overwritten."""
        if in_one:
            return convolve(features, self.conv, x)
        y = self.conv(features)
        weight = torch.sigmoid(y, out=features).sub_(0.5)  # fresh memory would cost more than the sigmoid
        return y.add_(x).mul_(weight)


class PixelAttention(nn.Module):
    """Three convolutions; the last one's output carries the features and weighs them."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_1 = Conv3x3(channels, channels)
        self.conv_2 = Conv3x3(channels, channels)
        self.conv_3 = Conv3x3(channels, channels)

    def forward(self, x: Tensor, in_one: bool) -> tuple[Tensor, Tensor]:
        o1 = self.conv_1.activate(x, in_one)
        o2 = self.conv_2.activate(o1, in_one)
        return self.conv_3.attend(o2, x, in_one), o1


class RepBlock(nn.Module):
    """Feature extraction followed by pixel attention."""

    def __init__(self, channels: int):
        super().__init__()
        self.feature_extractor = Conv3x3(channels, channels)
        self.pixel_attention = PixelAttention(channels)

    def forward(self, x: Tensor, in_one: bool) -> tuple[Tensor, Tensor]:
        return self.pixel_attention(self.feature_extractor(x, in_one), in_one)


class NanoSR_fast(nn.Module):
    """NanoSR for inference: 1 x 3 x H x W in [0, 1] gives 1 x 3 x 4H x 4W float32, about [0, 1] (not clamped).

    `precision` is "float32" (the same function up to rounding), "bfloat16" or "float16".

    On a GPU, the network is bound by kernel launches. A size seen for the second time is captured as a CUDA graph. It
    launches all kernels at once. The first pass of a size runs eagerly, since a capture costs more than one pass.
    `with_triton` is for GPUs only. Raises RuntimeError if Triton is requested but not installed.
    """

    mean: Tensor
    block_1: RepBlock
    block_2: RepBlock
    block_3: RepBlock
    block_4: RepBlock
    block_5: RepBlock
    block_6: RepBlock

    def __init__(self, num_in_ch: int = 3, num_out_ch: int = 3, precision: str = "float32", with_triton: bool = False):
        super().__init__()
        if with_triton and triton is None:
            raise RuntimeError("needs Triton, which comes with torch for GPUs; take the backend fast")
        self.dtype, self.with_triton = getattr(torch, precision), with_triton
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_1 = Conv3x3(num_in_ch, CHANNELS)
        for number in range(1, 7):
            self.add_module(f"block_{number}", RepBlock(CHANNELS))
        self.conv_2 = Conv3x3(CHANNELS, CHANNELS)
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, num_out_ch * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))
        self.register_load_state_dict_post_hook(lambda module, _keys: module._arrange())
        self._graphs: dict[torch.Size, Captured | None] = {}  # by input shape; None for a shape seen once
        self._arrange()

    def _arrange(self) -> None:
        mean = self.mean
        self.to(dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = mean  # subtracted before anything is rounded

    def _apply(self, fn: Any, recurse: bool = True) -> "NanoSR_fast":
        self._graphs = {}  # graphs read the weights at their old addresses
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        if not lr.is_cuda:
            return self._restore(lr, in_one=False)
        if lr.shape not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[lr.shape] = None
            return self._restore(lr, self.with_triton)
        captured = self._graphs[lr.shape]
        if captured is None:
            captured = self._graphs[lr.shape] = self._capture(lr)
        graph, graph_lr, graph_sr = captured
        graph_lr.copy_(lr)
        graph.replay()
        return graph_sr.clone()

    def _capture(self, lr: Tensor) -> Captured:
        graph, graph_lr = torch.cuda.CUDAGraph(), lr.clone()
        side = torch.cuda.Stream()  # capture wants its warm-up on another stream
        side.wait_stream(torch.cuda.current_stream())
        # The warm-up lets cuDNN try its algorithms: half a percent on an H200.
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            with torch.cuda.stream(side):
                self._restore(graph_lr, self.with_triton)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                graph_sr = self._restore(graph_lr, self.with_triton)
        finally:
            torch.backends.cudnn.benchmark = before
        return graph, graph_lr, graph_sr

    def _restore(self, lr: Tensor, in_one: bool) -> Tensor:
        x = ((lr - self.mean) * IMG_RANGE).to(self.dtype, memory_format=torch.channels_last)
        f0 = self.conv_1(x, in_one)  # 1 x 48 x H x W, as all that follows
        out_1, _ = self.block_1(f0, in_one)
        out = out_1
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            out, _ = block(out, in_one)
        out_6, o1 = self.block_6(out, in_one)
        f = self._weighted_sum(f0, self.conv_2(out_6, in_one), out_1, o1)
        return self.upsampler(f).float()  # 1 x 3 x 4H x 4W

    def _weighted_sum(self, *features: Tensor) -> Tensor:
        """Return `conv_cat` of the concatenated features, without concatenating them."""
        parts = self.conv_cat.weight.flatten(1).split(CHANNELS, dim=1)
        first, *others = (feature.permute(0, 2, 3, 1).reshape(-1, CHANNELS) for feature in features)  # HW x 48, views
        total = F.linear(first, parts[0], self.conv_cat.bias)
        for pixels, part in zip(others, parts[1:], strict=True):
            torch.addmm(total, pixels, part.t(), out=total)  # in place, and as an operator whose FLOPs are counted
        return total.view(1, *features[0].shape[2:], CHANNELS).permute(0, 3, 1, 2)
