"""Convolutions made here, and what follows them, against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from kernels import convolution

# Images of batch, channels in and out, height, width: the training's, and what fits neither tiles, rows nor threads.
SHAPES = [
    (2, 48, 48, 32, 32),
    (3, 48, 48, 24, 24),
    (1, 16, 64, 5, 7),
    (2, 64, 32, 33, 65),
    (1, 80, 112, 3, 2),
    (2, 48, 48, 1, 1),
]
ODD_SHAPES = [(2, 28, 20, 9, 10), (1, 17, 40, 4, 31)]  # channels that vectors do not hold evenly


@pytest.fixture(
    params=[
        pytest.param("amx", marks=pytest.mark.kernel("kernels/training_amx.c")),
        pytest.param("winograd", marks=pytest.mark.kernel("kernels/training_winograd.c")),
    ]
)
def kernel(request):
    """Each kernel that works here."""
    if not convolution.works(request.param):
        pytest.skip(f"{request.param}: no such processor, or no compiler that knows it")
    return request.param


def case(batch, c_in, c_out, height, width):
    """x, weight, bias, another input of what follows, and the outputs' gradient; all but the bias bfloat16 numbers."""
    make = torch.Generator().manual_seed(1)
    x = torch.randn(batch, c_in, height, width, generator=make).bfloat16()
    weight = (torch.randn(c_out, c_in, 3, 3, generator=make) / (3 * c_in**0.5)).bfloat16().float()
    bias = torch.randn(c_out, generator=make)
    other, gradient = (torch.randn(batch, c_out, height, width, generator=make).bfloat16() for _ in range(2))
    return (x, weight, bias, other), gradient


def near(result, expected, relative, absolute):
    """Whether results are the expected ones but for a share of each, and one of the largest."""
    difference = (result.double() - expected).abs()
    return bool((difference <= relative * expected.abs() + absolute * expected.abs().max()).all())


def exact_convolution(x, weight, bias, _other):
    return F.conv2d(x, weight, bias, padding=1)


def exact_silu(x, weight, bias, _other):
    return F.silu(F.conv2d(x, weight, bias, padding=1))


def exact_attention(x, weight, bias, other):
    z = F.conv2d(x, weight, bias, padding=1)
    return (z + other) * (torch.sigmoid(z) - 0.5)


FUNCTIONS = {
    "nothing": (lambda x, weight, bias, _, kernel: convolution.convolve(x, weight, bias, kernel), exact_convolution),
    "silu": (lambda x, weight, bias, _, kernel: convolution.convolve_silu(x, weight, bias, kernel), exact_silu),
    "attention": (convolution.convolve_attention, exact_attention),
}


@pytest.mark.parametrize("then", FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES + ODD_SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_float64(shape, then, kernel):
    if shape in ODD_SHAPES and kernel == "amx":
        pytest.skip("AMX takes channels by sixteen")
    function, exact = FUNCTIONS[then]
    inputs, gradient = case(*shape)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    result = function(*leaves, kernel)
    result.backward(gradient)
    doubles = [tensor.double().requires_grad_() for tensor in inputs]
    expected = exact(*doubles)
    expected.backward(gradient.double())
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert near(result, expected.detach(), 2**-8, 2**-14)  # one rounding
    # What follows has its gradient rounded, and sums, which a gradient hangs on, were.
    rounded = 2**-8 if then == "nothing" else 2**-6
    assert near(leaves[0].grad, doubles[0].grad, rounded, rounded)
    assert leaves[1].grad.dtype == torch.float32
    exactly = 1e-5 if then == "nothing" else 2**-7
    assert near(leaves[1].grad, doubles[1].grad, exactly, exactly)
    assert near(leaves[2].grad, doubles[2].grad, exactly, exactly)
    if then == "attention":
        assert near(leaves[3].grad, doubles[3].grad, rounded, rounded)


def test_convolution_without_a_bias_has_a_gradient(kernel):
    (x, weight, _, _), gradient = case(2, 16, 32, 8, 8)
    out = convolution.convolve(x, weight.requires_grad_(), None, kernel)
    out.backward(gradient)
    exact = weight.detach().double().requires_grad_()
    F.conv2d(x.double(), exact, padding=1).backward(gradient.double())
    assert near(weight.grad, exact.grad, 1e-5, 1e-5)


def test_result_used_twice_gets_both_gradients(kernel):
    """The sums themselves and what follows them, as where a network returns both."""
    (x, weight, bias, _), gradient = case(2, 16, 16, 8, 8)
    z, out = convolution.Convolution.apply(x, weight.requires_grad_(), bias, "silu", None, kernel)
    (z + out).backward(gradient)
    exact = weight.detach().double().requires_grad_()
    expected = F.conv2d(x.double(), exact, bias.double(), padding=1)
    (expected + F.silu(expected)).backward(gradient.double())
    assert near(weight.grad, exact.grad, 2**-7, 2**-7)


def test_same_inputs_give_the_same_bits(kernel):
    inputs, gradient = case(3, 48, 48, 32, 32)
    grads = []
    for _ in range(3):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        convolution.convolve_attention(*leaves, kernel).backward(gradient)
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


def test_saturated_sums_stay_numbers(kernel):
    x = torch.tensor([-3e4, -200.0, 0.0, 200.0, 3e4]).view(1, 1, 1, 5).expand(1, 16, 1, 5)
    weight = torch.zeros(16, 16, 3, 3)
    weight[range(16), range(16), 1, 1] = 1
    weight.requires_grad_()
    out = convolution.convolve_silu(x, weight, torch.zeros(16), kernel)
    out.backward(torch.ones_like(out))
    exactly = 1e-30 if kernel == "amx" else 1e-6  # of the largest, which shares tiles with the others
    assert near(out, F.silu(x.bfloat16().double()), 2**-8, exactly)
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize(
    "other", [0.5, torch.rand(2, 16, 1, 1), torch.rand(16, 6, 5)], ids=["number", "pixel", "image"]
)
def test_attention_takes_what_is_broadcast(other, kernel):
    (x, weight, bias, _), _ = case(2, 16, 16, 6, 5)
    result = convolution.convolve_attention(x, weight, bias, other, kernel)
    assert near(result, exact_attention(x.double(), weight.double(), bias.double(), other), 2**-5, 2**-6)


@pytest.mark.parametrize("shape", [(2, 16, 6, 5), (2, 64, 6, 5), (48, 6, 5)])
def test_inputs_of_other_channels_or_dimensions_are_refused(shape, kernel):
    with pytest.raises(ValueError, match="kernels of 48 channels do not fit"):
        convolution.convolve(torch.rand(shape), torch.rand(48, 48, 3, 3), None, kernel)
