"""3x3 convolutions for training in bfloat16 on a CPU, fused with a SiLU or attention after them, and their gradients.

The activations of a training step are bound by memory, and oneDNN reaches a quarter of a processor's peak in
convolutions of this size. Here, one of the KERNELS processes each image completely, forward and backward, while it lies
in a core's cache. training_amx.c uses the matrix tiles of processors with AMX. training_winograd.c takes a quarter of
the multiplications, in float32, on any processor. The C files explain how.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.compiler import THEN, compiled_convolution


@dataclass(frozen=True)
class Kernel:
    """A C file with `forward` and `backward`.

    The numbers of channels must be multiples of `multiple`; weights are in `dtype` and memory `layout`.
    """

    source: str
    multiple: int
    dtype: torch.dtype
    layout: torch.memory_format


LEAST = 16  # channels; with fewer, oneDNN is as fast
Name = Literal["amx", "winograd"]
KERNELS: dict[Name, Kernel] = {  # the fastest first
    "amx": Kernel("training_amx.c", LEAST, torch.bfloat16, torch.contiguous_format),
    "winograd": Kernel("training_winograd.c", 1, torch.float32, torch.channels_last),
}


@functools.cache
def library(kernel: Name, c_in: int, c_out: int) -> ctypes.CDLL:
    """Return a kernel's C functions for these numbers of channels. Raises RuntimeError if it cannot run here."""
    library = compiled_convolution(KERNELS[kernel].source, "bfloat16", IN=c_in, OUT=c_out)
    if library.permitted():
        raise RuntimeError("the kernel does not let a process use AMX's tiles")
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.forward.argtypes = [pointer] * 6 + [number] * 3 + [ctypes.c_int] * 2
    library.backward.argtypes = [pointer] * 10 + [number] * 3 + [ctypes.c_int] * 2
    return library


@functools.cache
def works(kernel: Name) -> bool:
    """Return whether this machine has a kernel's instructions, and a compiler that knows them."""
    try:
        library(kernel, LEAST, LEAST)
    except RuntimeError:
        return False
    return True


def fastest() -> Name | None:
    """Return the name of the fastest kernel that works on this machine, None if none does."""
    return next(filter(works, KERNELS), None)


def takes(kernel: Name, c_in: int, c_out: int) -> bool:
    """Return whether a kernel computes convolutions of these numbers of channels."""
    multiple = KERNELS[kernel].multiple
    return min(c_in, c_out) >= LEAST and not c_in % multiple and not c_out % multiple


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Name) -> Tensor:
    """Convolve B x C_in x H x W, of any float type, with C_out x C_in x 3 x 3 weights to B x C_out x H x W in bfloat16.

    `takes` must allow the numbers of channels. The result is channels-last; the zero padding is 1. Inputs, and with AMX
    also weights, are rounded to bfloat16; products are summed in float32. Gradients of weights are float32. The order
    of the sums, and so the last bits, depend only on the kernel and the number of threads. Raise MemoryError if memory
    runs out, and ValueError for an input of other channels or dimensions.
    """
    return Convolution.apply(x, weight, bias, "nothing", None, kernel)[0]


def convolve_silu(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Name) -> Tensor:
    """Convolve as `convolve` does, and return SiLU of that."""
    return Convolution.apply(x, weight, bias, "silu", None, kernel)[1]


def convolve_attention(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | float, kernel: Name) -> Tensor:
    """Convolve to z as `convolve` does, and return (z + other) * (sigmoid(z) - 0.5); `other` may be broadcast."""
    shape = x.shape[0], weight.shape[0], *x.shape[2:]
    if not isinstance(other, Tensor) or other.shape != shape:
        z = convolve(x, weight, bias, kernel)
        return (z + other) * (torch.sigmoid(z) - 0.5)
    return Convolution.apply(x, weight, bias, "attention", other, kernel)[1]


class Convolution(torch.autograd.Function):
    """Returns the convolution and the result of the operation after it, which is None if nothing follows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        then: str,
        other: Tensor | None,
        kernel: Name,
    ) -> tuple[Tensor, Tensor | None]:
        if x.ndim != 4 or x.shape[1] != weight.shape[1]:
            raise ValueError(f"kernels of {weight.shape[1]} channels do not fit {tuple(x.shape)}")
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, other)]
        x = rounded(x)
        other = None if other is None else rounded(other)
        weight = weight.to(KERNELS[kernel].dtype).contiguous(memory_format=KERNELS[kernel].layout)
        shape = x.shape[0], weight.shape[0], *x.shape[2:]
        z = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        out = None if then == "nothing" else torch.empty_like(z)
        float_bias = None if bias is None else bias.float()
        call(kernel, "forward", x, weight, then, x, weight, float_bias, other, z, out)
        ctx.then, ctx.kernel = then, kernel
        ctx.save_for_backward(x, weight, other, None if out is None else z)
        ctx.set_materialize_grads(False)
        return z, out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_z, of_out = (None if gradient is None else rounded(gradient) for gradient in gradients)
        x, weight, other, z = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_other = None if other is None else torch.empty_like(other)
        grad_weight, grad_bias = torch.empty_like(weight, dtype=torch.float32), torch.empty(weight.shape[0])
        results = grad_x, grad_weight, grad_bias, grad_other
        call(ctx.kernel, "backward", x, weight, ctx.then, of_out, of_z, x, weight, other, z, *results)
        of_x, of_weight, of_bias, of_other = map(cast, results, ctx.dtypes)
        return of_x, of_weight, of_bias, None, of_other, None


def rounded(tensor: Tensor) -> Tensor:
    """Return a tensor as bfloat16, channels last in memory; itself if it is so already."""
    return tensor.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """Return a gradient in the dtype of its tensor; None if there is no gradient or no such tensor."""
    return None if tensor is None or dtype is None else tensor.to(dtype)


def call(kernel: Name, function: str, x: Tensor, weight: Tensor, then: str, *tensors: Tensor | None) -> None:
    """Run a C function on tensors, None for NULL. Raises MemoryError without memory."""
    batch, c_in, height, width = x.shape
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    threads = min(torch.get_num_threads(), batch)
    run = getattr(library(kernel, c_in, weight.shape[0]), function)
    if run(*pointers, batch, height, width, THEN[then], threads):
        raise MemoryError(f"no memory for a convolution of {batch} images of {height} x {width}")
