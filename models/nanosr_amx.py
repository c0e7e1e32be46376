"""NanoSR, fused form, for processors with AMX: the function and state-dict keys of `team07_NanoSR.py`, in bfloat16.

AMX multiplies matrix tiles at several times the rate of the processor's other units. Winograd's trick does not pay
here, since the other units would have to compute its transforms. So the convolutions are direct, in
`kernels/nanosr_amx.c`; activation and attention are computed between the products. Maps are bfloat16, sums float32.
This needs gcc or clang, and a Linux kernel that lets a process use tiles.
"""

import ctypes
import functools

import torch
from torch import Tensor, nn

from kernels.compiler import THEN, compiled_convolution
from models.nanosr_winograd import MAPS, NanoSR_winograd, address
from models.team07_NanoSR import CHANNELS

TILE, DEPTH = 16, 32  # rows or columns of a tile, and how many values it sums up
STEPS = 5  # tiles of DEPTH that hold a kernel's row of 3 x 48 values and the 16 before or after it
SLACK = 4 * DEPTH * CHANNELS  # zeros that are read, to no effect, after the last map


@functools.cache
def functions() -> ctypes.CDLL:
    """Return the library of the C function `convolve`.

    Raises RuntimeError where it cannot be compiled or may not use tiles.
    """
    library = compiled_convolution("nanosr_amx.c", "bfloat16", CHANNELS=CHANNELS)
    if library.permitted():
        raise RuntimeError("the kernel does not let a process use AMX's tiles; take the backend fast or winograd")
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.convolve.argtypes = [pointer] * 5 + [number] * 3 + [ctypes.c_int, ctypes.c_int]
    library.convolve.restype = None
    return library


def arranged(weight: Tensor) -> Tensor:
    """Return 48 x 48 x 3 x 3 kernels as `convolve` reads them.

    The order is: even or odd pixels, part of 16 output channels, kernel row, and tile of 16 pairs of values x 16
    channels.
    """
    rows = weight.permute(2, 3, 1, 0).reshape(3, 3 * CHANNELS, CHANNELS)  # values in the order of memory
    kernels = torch.zeros(2, 3, STEPS * DEPTH, CHANNELS)
    kernels[0, :, : 3 * CHANNELS], kernels[1, :, -3 * CHANNELS :] = rows, rows
    pairs = kernels.view(2, 3, STEPS, DEPTH // 2, 2, CHANNELS // TILE, TILE)
    return pairs.permute(0, 5, 1, 2, 3, 6, 4).bfloat16().contiguous()


class NanoSR_amx(NanoSR_winograd):
    """NanoSR for inference: 1 x 3 x H x W in [0, 1] gives 1 x 3 x 4H x 4W, about [0, 1] (not clamped), float32.

    Raises RuntimeError where there is no AMX or its source cannot be compiled.
    """

    def __init__(self) -> None:
        super().__init__("bfloat16")

    def _compile(self, _precision: str) -> ctypes.CDLL:
        return functions()

    def _transformed(self, weight: Tensor) -> Tensor:
        return arranged(weight)

    def _maps(self, height: int, width: int) -> Tensor:
        """Return MAPS maps of 1 x 48 x H x W, each inside of a border of zeros."""
        rows, columns = height + 2, (width + 3) // 2 * 2  # rows of a multiple of 64 bytes
        size = MAPS * rows * columns * CHANNELS
        if self.arena.numel() < size + SLACK:
            self.arena = torch.zeros(size + SLACK, dtype=self.dtype)
        self.arena[size : size + SLACK] = 0  # an earlier pass may have used them
        maps = self.arena[:size].view(MAPS, 1, rows, columns, CHANNELS)
        maps[:, :, 0] = maps[:, :, -1] = maps[:, :, :, 0] = 0
        maps[:, :, :, width + 1 :] = 0
        return maps[:, :, 1:-1, 1 : width + 1].permute(0, 1, 4, 2, 3)

    def _begin(self, x: Tensor, f0: Tensor) -> Tensor:
        return f0.copy_(self.conv_1(x.contiguous(memory_format=torch.channels_last)))

    def _pixels(self, features: Tensor) -> Tensor:
        """Return a map with its border as pixels x 48. Without a bias, zeros of the border stay zero."""
        rows, stride = features.shape[2] + 2, features.stride(2)
        start = features.storage_offset() - stride - CHANNELS
        return features.as_strided((rows * stride // CHANNELS, CHANNELS), (CHANNELS, 1), start)

    def _shared(self, weights: Tensor) -> Tensor:
        return weights.to(self.dtype)

    def _weighted_sum(self, f0: Tensor, out_1: Tensor, o1: Tensor, out: Tensor) -> Tensor:
        total, *features = map(self._pixels, (out, f0, out_1, o1))
        first, second, third = self.shares
        torch.mm(features[0], first.t(), out=total)
        total.addmm_(features[1], second.t()).addmm_(features[2], third.t())
        return out

    def _convolve(
        self, module: nn.Conv2d, x: Tensor, out: Tensor, then: str = "nothing", other: Tensor | None = None
    ) -> Tensor:
        u, bias = self.kernels[module]
        stride = x.stride(2)
        maps = [x, out if other is None else other, *([] if then == "shuffle" else [out])]
        of_x, of_other, *of_out = (tensor.data_ptr() - 2 * (stride + CHANNELS) for tensor in maps)
        pointers = of_x, address(u), address(bias), of_other, *(of_out or [out.data_ptr()])
        self.functions.convolve(*pointers, *x.shape[2:], stride, THEN[then], torch.get_num_threads())
        return out
