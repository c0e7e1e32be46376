"""NanoSR, fused form, arranged for speed: the function and state-dict keys of `team07_NanoSR.py`, for inference only.

What it does differently: channels-last memory throughout; no concatenation, the 1x1 convolution over it is a sum of
four matrix products; activations and attention in place; optionally bfloat16 or float16 arithmetic; on a GPU, a size
that comes again is one CUDA graph, and the attention can be one Triton kernel. Imports only torch, and Triton, which
comes with torch for GPUs, where that is wanted.
"""

import torch
import torch.nn.functional as F
from torch import nn

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
BLOCK = 1024  # values of a Triton program


if triton:

    @triton.jit
    def attention_kernel(o3, x, count, block: tl.constexpr):
        """Write (o3 + x) * (sigmoid(o3) - 0.5) over o3, computed in float32: two reads and a write of memory."""
        at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = at < count
        z = tl.load(o3 + at, mask=inside).to(tl.float32)
        features = tl.load(x + at, mask=inside).to(tl.float32)
        tl.store(o3 + at, (z + features) * (tl.sigmoid(z) - 0.5), mask=inside)


def attend(o3, x, spare):
    """Return (o3 + x) * (sigmoid(o3) - 0.5) in o3's memory; `spare`, of the same shape, is overwritten."""
    # Fresh memory for the weight would cost more than the sigmoid.
    weight = torch.sigmoid(o3, out=spare).sub_(0.5)
    return o3.add_(x).mul_(weight)


def attend_with_triton(o3, x, _spare):
    """As `attend`, in one kernel. Both tensors lie in the same order in memory without gaps."""
    attention_kernel[(triton.cdiv(o3.numel(), BLOCK),)](o3, x, o3.numel(), block=BLOCK)
    return o3


class Conv3x3(nn.Module):
    """3x3 convolution, zero padding 1, with bias."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class PixelAttention(nn.Module):
    """Three convolutions; the last one's output carries the features and weighs them."""

    def __init__(self, channels, with_triton):
        super().__init__()
        self.conv_1 = Conv3x3(channels, channels)
        self.conv_2 = Conv3x3(channels, channels)
        self.conv_3 = Conv3x3(channels, channels)
        self.with_triton = with_triton

    def forward(self, x):
        o1 = F.silu(self.conv_1(x), inplace=True)
        o2 = F.silu(self.conv_2(o1), inplace=True)
        o3 = self.conv_3(o2)
        use = attend_with_triton if self.with_triton and not torch.jit.is_tracing() else attend
        return use(o3, x, o2), o1


class RepBlock(nn.Module):
    """Feature extraction followed by pixel attention."""

    def __init__(self, channels, with_triton):
        super().__init__()
        self.feature_extractor = Conv3x3(channels, channels)
        self.pixel_attention = PixelAttention(channels, with_triton)

    def forward(self, x):
        return self.pixel_attention(self.feature_extractor(x))


class NanoSR_fast(nn.Module):
    """NanoSR for inference: 1 x 3 x H x W in [0, 1] gives 1 x 3 x 4H x 4W float32, about [0, 1] (not clamped).

    `precision` is "float32" (the same function up to rounding), "bfloat16" or "float16".

    On a GPU the network is bound by the starting of its kernels. A size seen for the second time is captured as a CUDA
    graph, which starts them all at once; the first time runs plainly, since capturing costs more than one pass.
    `with_triton` is for GPUs only. Raises RuntimeError if Triton is wanted and not installed.
    """

    def __init__(self, num_in_ch=3, num_out_ch=3, precision="float32", with_triton=False):
        super().__init__()
        if with_triton and triton is None:
            raise RuntimeError("needs Triton, which comes with torch for GPUs; take the backend fast")
        self.dtype = getattr(torch, precision)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_1 = Conv3x3(num_in_ch, CHANNELS)
        for number in range(1, 7):
            self.add_module(f"block_{number}", RepBlock(CHANNELS, with_triton))
        self.conv_2 = Conv3x3(CHANNELS, CHANNELS)
        self.conv_cat = nn.Conv2d(4 * CHANNELS, CHANNELS, 1)
        self.upsampler = nn.Sequential(nn.Conv2d(CHANNELS, num_out_ch * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))
        self.register_load_state_dict_post_hook(lambda module, _keys: module._arrange())
        self._graphs = {}  # by input shape; None for a shape seen once
        self._arrange()

    def _arrange(self):
        mean = self.mean
        self.to(dtype=self.dtype, memory_format=torch.channels_last)
        self.mean = mean  # subtracted before anything is rounded

    def _apply(self, fn, recurse=True):
        self._graphs = {}  # they read the weights where these were
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, lr):
        # Tracing and hooks would see nothing of a replay.
        if not lr.is_cuda or torch.jit.is_tracing() or self.upsampler[0]._forward_hooks:
            return self._restore(lr)
        if lr.shape not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[lr.shape] = None
            return self._restore(lr)
        if self._graphs[lr.shape] is None:
            self._graphs[lr.shape] = self._capture(lr)
        graph, graph_lr, graph_sr = self._graphs[lr.shape]
        graph_lr.copy_(lr)
        graph.replay()
        return graph_sr.clone()

    def _capture(self, lr):
        graph, graph_lr = torch.cuda.CUDAGraph(), lr.clone()
        side = torch.cuda.Stream()  # capture wants its warm-up on another stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._restore(graph_lr)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            graph_sr = self._restore(graph_lr)
        return graph, graph_lr, graph_sr

    def _restore(self, lr):
        x = ((lr - self.mean) * IMG_RANGE).to(self.dtype, memory_format=torch.channels_last)
        f0 = self.conv_1(x)  # 1 x 48 x H x W, as all that follows
        out_1, _ = self.block_1(f0)
        out = out_1
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            out, _ = block(out)
        out_6, o1 = self.block_6(out)
        f = self._weighted_sum(f0, self.conv_2(out_6), out_1, o1)
        return self.upsampler(f).float()  # 1 x 3 x 4H x 4W

    def _weighted_sum(self, *features):
        """`conv_cat` of the concatenated features, without concatenating them."""
        parts = self.conv_cat.weight.flatten(1).split(CHANNELS, dim=1)
        first, *others = (feature.permute(0, 2, 3, 1).reshape(-1, CHANNELS) for feature in features)  # HW x 48, views
        total = F.linear(first, parts[0], self.conv_cat.bias)
        for pixels, part in zip(others, parts[1:], strict=True):
            torch.addmm(total, pixels, part.t(), out=total)  # in place, by a name under which FLOPs are counted
        return total.view(1, *features[0].shape[2:], CHANNELS).permute(0, 3, 1, 2)
