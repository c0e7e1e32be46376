"""NanoSR, fused form, with fewer multiplications, for CPUs: the function and state-dict keys of `team07_NanoSR.py`.

A 3x3 convolution takes 9 multiplications per output; Winograd's F(6x6, 3x3) takes 64 for 36 outputs. Tiles of 8 x 8
inputs and the kernels are transformed, multiplied point by point (over the channels, as matrix products) and
transformed back. This pays only if a strip of tiles is processed completely, with its activation or attention, while it
lies in the cache. In tensor operations, the transforms go through memory and cost more than they save. So the
convolutions are in C, `kernels/nanosr_winograd.c`. The file is compiled when the network is first built, which needs
gcc or clang and takes a second.

`precision` "float32" is the same function up to rounding. "float16" rounds the maps between convolutions, which are
bound by memory, to float16, but computes in float32. "bfloat16" rounds maps, transformed tiles and kernels to bfloat16,
and computes sums, transforms and activations in float32, in tiles of F(4x4, 3x3). It needs a processor with
AVX512_BF16.

Sources: A. Lavin, S. Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016; for the choice of points B.
Barabasz et al., *Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks*, 2020.
"""

import ctypes
import functools
import math

import torch
from torch import Tensor, nn

from kernels.compiler import POINTS, THEN, compiled_convolution
from models.team07_NanoSR import CHANNELS, IMG_RANGE, SCALE, NanoSR_inference, RepBlock

MAPS = 5  # feature maps in use at the same time
# Outputs per side of a tile: larger tiles need fewer multiplications but round more.
GIVEN = {"float32": 6, "float16": 6, "bfloat16": 4}


@functools.cache
def functions(precision: str) -> ctypes.CDLL:
    """Return the C functions `begin`, `convolve` and `weighted_sum`."""
    library = compiled_convolution("nanosr_winograd.c", precision, GIVEN[precision], CHANNELS=CHANNELS)
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.convolve.argtypes = [pointer] * 5 + [number, number, ctypes.c_int, ctypes.c_int]
    library.begin.argtypes = [pointer] * 4 + [number, number, ctypes.c_int]
    library.weighted_sum.argtypes = [pointer] * 5 + [number, ctypes.c_int]
    library.begin.restype = library.convolve.restype = library.weighted_sum.restype = None
    return library


def transformed(weight: Tensor, precision: str) -> Tensor:
    """Return 48 x 48 x 3 x 3 kernels as matrices, one for each point, in the order that `convolve` reads."""
    points = [0.0, *(sign * point for point in POINTS[GIVEN[precision]] for sign in (1, -1))]
    rows = []
    for point in points:
        scale = math.prod(point - other for other in points if other != point)
        rows.append([1 / scale, point / scale, point**2 / scale])
    rows.append([0.0, 0.0, 1.0])  # of infinity
    g = torch.tensor(rows, dtype=torch.float64)  # 6 or 8 x 3
    return factors(torch.einsum("ia,ocab,jb->ijco", g, weight.double(), g).flatten(0, 1), precision)


def factors(matrices: Tensor, precision: str) -> Tensor:
    """Return matrices, N x 48 inputs x 48 outputs, as C's products read them: in bfloat16, in pairs of inputs."""
    if precision != "bfloat16":
        return matrices.float().contiguous()
    return matrices.unflatten(1, (CHANNELS // 2, 2)).transpose(2, 3).float().bfloat16().contiguous()


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's values; None for None."""
    return None if tensor is None else tensor.data_ptr()


class NanoSR_winograd(NanoSR_inference):
    """NanoSR for inference on CPUs: 1 x 3 x H x W in [0, 1] gives 1 x 3 x 4H x 4W, about [0, 1] (not clamped), float32.

    Raises RuntimeError if the C source cannot be compiled here.
    """

    def __init__(self, precision: str = "float32"):
        super().__init__()
        self.precision, self.dtype = precision, getattr(torch, precision)
        self.functions = self._compile(precision)
        self.arena = torch.empty(0, dtype=self.dtype)  # memory of the maps, kept: fresh pages cost time in every pass
        self.register_load_state_dict_post_hook(lambda module, _keys: module._arrange())
        self._arrange()

    @torch.no_grad()
    def _arrange(self) -> None:
        """Transform the kernels; `conv_2` takes over its share of `conv_cat`, which follows it."""
        first, share, *others = self.conv_cat.weight.flatten(1).split(CHANNELS, dim=1)
        self.shares = self._shared(torch.stack([first, *others]))
        self.kernels = {}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.shape == (CHANNELS, CHANNELS, 3, 3):
                weight, bias = module.weight, module.bias
                if module is self.conv_2.conv:
                    weight = torch.einsum("om,mcij->ocij", share.double(), weight.double())
                    bias = self.conv_cat.bias + share @ bias
                self.kernels[module] = self._transformed(weight), bias
        self.first_weight = self.conv_1.conv.weight.permute(1, 2, 3, 0).contiguous()

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        if lr.shape[0] != 1 or lr.device.type != "cpu":
            raise RuntimeError("takes one image, on the CPU; for a GPU take the backend fast")
        f0, first, a, b, c = self._maps(*lr.shape[2:])
        f0 = self._begin((lr - self.mean) * IMG_RANGE, f0)
        out_1, _ = self._attended(self.block_1, f0, first, a, c)
        x, _ = self._attended(self.block_2, out_1, b, a, c)
        x, _ = self._attended(self.block_3, x, a, b, c)
        x, _ = self._attended(self.block_4, x, b, a, c)
        x, _ = self._attended(self.block_5, x, a, b, c)
        out_6, o1 = self._attended(self.block_6, x, b, a, c)
        f = self._weighted_sum(f0, out_1, o1, out=c)
        f = self._convolve(self.conv_2.conv, out_6, f, "add", f)
        sr = torch.empty(1, 3, *(SCALE * side for side in lr.shape[2:]))
        return self._convolve(self.last_convolution, f, sr, "shuffle")

    @property
    def last_convolution(self) -> nn.Conv2d:
        """The convolution before the pixel shuffle."""
        convolution = self.upsampler[0]
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def _compile(self, precision: str) -> ctypes.CDLL:
        return functions(precision)

    def _transformed(self, weight: Tensor) -> Tensor:
        return transformed(weight, self.precision)

    def _shared(self, weights: Tensor) -> Tensor:
        """Return `conv_cat`'s shares, 3 x outputs x inputs, as `_weighted_sum` takes them."""
        return factors(weights.mT, self.precision)

    def _maps(self, height: int, width: int) -> Tensor:
        """Return MAPS maps of 1 x 48 x H x W, channels last, whose values are left over from earlier passes."""
        size = MAPS * height * width * CHANNELS
        if self.arena.numel() < size:
            self.arena = torch.empty(size, dtype=self.dtype)
        return self.arena[:size].view(MAPS, 1, height, width, CHANNELS).permute(0, 1, 4, 2, 3)

    def _begin(self, x: Tensor, f0: Tensor) -> Tensor:
        """Return the first convolution's output, in `f0`."""
        x = x.contiguous()
        pointers = (address(tensor) for tensor in (x, self.first_weight, self.conv_1.conv.bias, f0))
        self.functions.begin(*pointers, *x.shape[2:], torch.get_num_threads())
        return f0

    def _attended(self, block: RepBlock, x: Tensor, features: Tensor, o1: Tensor, o2: Tensor) -> tuple[Tensor, Tensor]:
        """Return (attended features, activated output of the attention's first convolution), in `features` and `o1`."""
        attention = block.pixel_attention
        features = self._convolve(block.feature_extractor.conv, x, features)
        o1 = self._convolve(attention.conv_1.conv, features, o1, "silu")
        o2 = self._convolve(attention.conv_2.conv, o1, o2, "silu")
        return self._convolve(attention.conv_3.conv, o2, features, "attention", features), o1

    def _convolve(
        self, module: nn.Conv2d, x: Tensor, out: Tensor, then: str = "nothing", other: Tensor | None = None
    ) -> Tensor:
        u, bias = self.kernels[module]
        pointers = (address(tensor) for tensor in (x, u, bias, out if other is None else other, out))
        self.functions.convolve(*pointers, *x.shape[2:], THEN[then], torch.get_num_threads())
        return out

    def _weighted_sum(self, f0: Tensor, out_1: Tensor, o1: Tensor, out: Tensor) -> Tensor:
        """Return `conv_cat` of its three inputs other than conv_2's output, without concatenating them."""
        pointers = (address(tensor) for tensor in (f0, out_1, o1, self.shares, out))
        self.functions.weighted_sum(*pointers, f0.shape[2] * f0.shape[3], torch.get_num_threads())
        return out
