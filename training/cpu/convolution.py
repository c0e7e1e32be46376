"""3x3 convolutions for training in bfloat16, with what often follows them in one pass, and their gradients, in C.

Activations that a training step keeps wait for memory, and oneDNN reaches a quarter of what a processor can do in a
convolution of that size. Here an image goes all the way while it lies in a core's cache, forward and backward, in one
of two ways: amx.c multiplies by the tiles of processors that have AMX; winograd.c, on the others that know bfloat16,
takes a quarter of the multiplications, in float32. Those files say how.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from models.cpu.compiler import THEN, compiled_convolution


@dataclass(frozen=True)
class Way:
    """A C file with `forward` and `backward`: what numbers of channels it takes, and how kernels lie in its memory."""

    source: Path
    multiple: int
    dtype: torch.dtype
    layout: torch.memory_format


LEAST = 16  # channels: what oneDNN does with fewer takes no longer
AMX = Way(Path(__file__).with_name("amx.c"), LEAST, torch.bfloat16, torch.contiguous_format)
WINOGRAD = Way(Path(__file__).with_name("winograd.c"), 1, torch.float32, torch.channels_last)


@functools.cache
def library(way, c_in, c_out):
    """Return a way's C functions for these numbers of channels. Raises RuntimeError where they cannot be had."""
    library = compiled_convolution(way.source, "bfloat16", IN=c_in, OUT=c_out)
    if library.permitted():
        raise RuntimeError("the kernel does not let a process use AMX's tiles")
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.forward.argtypes = [pointer] * 6 + [number] * 3 + [ctypes.c_int] * 2
    library.backward.argtypes = [pointer] * 10 + [number] * 3 + [ctypes.c_int] * 2
    return library


@functools.cache
def works(way):
    """Whether this machine has a way's instructions, and a compiler that knows them."""
    try:
        library(way, LEAST, LEAST)
    except RuntimeError:
        return False
    return True


@functools.cache
def chosen():
    """Return the Way that this machine goes, the faster of those that it can, or None."""
    return next(filter(works, (AMX, WINOGRAD)), None)


def is_possible(c_in, c_out):
    """Whether convolutions of these numbers of channels are made here."""
    way = chosen()
    return way is not None and min(c_in, c_out) >= LEAST and not c_in % way.multiple and not c_out % way.multiple


def convolve(x, weight, bias):
    """Convolve B x C_in x H x W, of any float type, with C_out x C_in x 3 x 3 kernels to B x C_out x H x W in bfloat16.

    The numbers of channels are such as `is_possible` names; channels lie last in the result's memory; the border is of
    one zero. Inputs, and by AMX weights, are rounded to bfloat16, products summed in float32; weights' gradients are
    float32. The order of the sums, and so the last bits, hang on the Way and the number of threads alone. Raises
    MemoryError, and ValueError for an input of other channels or dimensions.
    """
    return Convolution.apply(x, weight, bias, "nothing", None)[0]


def convolve_silu(x, weight, bias):
    """Convolve as `convolve` does, and return SiLU of that."""
    return Convolution.apply(x, weight, bias, "silu", None)[1]


def convolve_attention(x, weight, bias, other):
    """Convolve as `convolve` does, and return (z + other) * (sigmoid(z) - 0.5) of that z; `other` may be broadcast."""
    shape = x.shape[0], weight.shape[0], *x.shape[2:]
    if not torch.is_tensor(other) or other.shape != shape:
        z = convolve(x, weight, bias)
        return (z + other) * (torch.sigmoid(z) - 0.5)
    return Convolution.apply(x, weight, bias, "attention", other)[1]


class Convolution(torch.autograd.Function):
    """Returns the convolution, and what follows, None if nothing does."""

    @staticmethod
    def forward(ctx, x, weight, bias, then, other):
        if x.ndim != 4 or x.shape[1] != weight.shape[1]:
            raise ValueError(f"kernels of {weight.shape[1]} channels are no match for {tuple(x.shape)}")
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias, other)]
        x, other = rounded(x), rounded(other)
        weight = weight.to(chosen().dtype).contiguous(memory_format=chosen().layout)
        shape = x.shape[0], weight.shape[0], *x.shape[2:]
        z = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        out = None if then == "nothing" else torch.empty_like(z)
        call("forward", x, weight, then, x, weight, None if bias is None else bias.float(), other, z, out)
        ctx.then = then
        ctx.save_for_backward(x, weight, other, None if out is None else z)
        ctx.set_materialize_grads(False)
        return z, out

    @staticmethod
    def backward(ctx, of_z, of_out):
        x, weight, other, z = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_other = None if other is None else torch.empty_like(other)
        grad_weight, grad_bias = torch.empty_like(weight, dtype=torch.float32), torch.empty(weight.shape[0])
        given = rounded(of_out), rounded(of_z)
        results = grad_x, grad_weight, grad_bias, grad_other
        call("backward", x, weight, ctx.then, *given, x, weight, other, z, *results)
        grad_x, grad_weight, grad_bias, grad_other = map(cast, results, ctx.dtypes)
        return grad_x, grad_weight, grad_bias, None, grad_other


def rounded(tensor):
    """A tensor as bfloat16, channels last in memory; itself if it is so already; None of None."""
    return None if tensor is None else tensor.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def cast(tensor, dtype):
    """A gradient as the type of what it is of; None where there is no gradient, or nothing to have one."""
    return None if tensor is None or dtype is None else tensor.to(dtype)


def call(function, x, weight, then, *tensors):
    """Run a C function on tensors, None for NULL. Raises MemoryError without memory."""
    batch, c_in, height, width = x.shape
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    threads = min(torch.get_num_threads(), batch)
    run = getattr(library(chosen(), c_in, weight.shape[0]), function)
    if run(*pointers, batch, height, width, THEN[then], threads):
        raise MemoryError(f"no memory for a convolution of {batch} images of {height} x {width}")
