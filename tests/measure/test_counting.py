"""utils/measure/counting.py: what torch's dispatcher sees, worked out on paper."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.measure.counting import stored_values, watched_pass


def test_multiply_accumulates_of_convolutions_and_products():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(20, 5))
    seen, _ = watched_pass(network, torch.rand(1, 3, 4, 5))
    assert seen.macs == 8 * 3 * 9 * 20 + 8 * 20 * 5


def test_strided_grouped_and_transposed_convolutions():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), nn.ConvTranspose2d(4, 2, 2, stride=2))
    assert watched_pass(network, torch.rand(1, 4, 8, 8))[0].macs == 4 * 2 * 9 * 16 + 4 * 2 * 4 * 16


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each look takes 0.01 ms, and a network as much as it says."""
    now = SimpleNamespace(s=0.0)

    def look():
        now.s += 1e-5
        return now.s

    monkeypatch.setattr("utils.measure.counting.time", SimpleNamespace(perf_counter=look))
    return now


class Chain(nn.Module):
    """Many small operators, and `seconds` by a clock for something that is none."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        for _ in range(500):
            x = x + 1
        self.clock.s += self.seconds
        return x


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_time_outside_of_operators_is_what_is_none_of_theirs(clock, seconds):
    """What the watching takes for each operator, 5 ms of it here, is not taken for something else."""
    seen, _ = watched_pass(Chain(clock, seconds), torch.rand(1, 3, 8, 8))
    assert seen.macs == 0
    assert seen.outside_ms == pytest.approx(1000 * seconds, abs=0.1)
    assert seen.operators_ms == pytest.approx(500 * 0.01)


class Hidden(nn.Module):
    """A convolution of 3 to 8 channels whose weight is what `keep` makes of it, computed as `convolve` does."""

    def __init__(self, keep, convolve=lambda x, weight: F.conv2d(x, weight, padding=1)):
        super().__init__()
        self.convolve = convolve
        keep(self, torch.rand(8, 3, 3, 3))

    def forward(self, x):
        return self.convolve(x, self.weight)


def as_parameter(module, weight):
    module.weight = nn.Parameter(weight)


def as_buffer(module, weight):
    module.register_buffer("weight", weight)


def as_attribute(module, weight):
    module.weight = weight


LR, MACS = torch.rand(1, 3, 4, 5), 8 * 3 * 9 * 20


@pytest.mark.parametrize(
    ("keep", "hidden", "named"),
    [
        (as_parameter, 0, []),
        (as_buffer, 216, ["buffer weight (8 x 3 x 3 x 3)"]),
        (as_attribute, 216, ["a tensor that is in no state dict (8 x 3 x 3 x 3)"]),
    ],
)
def test_numbers_that_are_no_parameters_are_counted_and_named(keep, hidden, named):
    seen, _ = watched_pass(Hidden(keep), LR)
    assert (seen.macs, seen.convs, seen.activations) == (MACS, 1, 8 * 20)
    assert (seen.hidden_values, seen.hidden) == (hidden, named)


def test_statistics_of_a_batch_norm_are_not_hidden():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    assert watched_pass(network, LR)[0].hidden_values == 0


def by_products(x, weight):
    """A 1x1 convolution, by what stands at the middle of the kernel."""
    return (x.unsqueeze(1) * weight[None, :, :, 1, 1, None, None]).permute(0, 1, 3, 4, 2).sum(-1)


def by_fft(x, weight):
    spectrum = torch.fft.rfft2(x, s=(8, 8)).unsqueeze(1) * torch.fft.rfft2(weight, s=(8, 8))
    return torch.fft.irfft2(spectrum.sum(2), s=(8, 8))


def test_element_wise_products_that_are_summed_are_multiply_accumulates():
    seen, _ = watched_pass(Hidden(as_parameter, by_products), LR)
    assert (seen.macs, seen.summed_products) == (0, 8 * 3 * 20)


def by_products_added(x, weight):
    """The same, with the products of each channel added to those before."""
    result = torch.zeros(1, 8, 4, 5)
    for channel in range(3):
        result = result + x[:, channel : channel + 1] * weight[None, :, channel, 1, 1, None, None]
    return result


def test_products_that_are_added_up_are_multiply_accumulates():
    """The first is added to nothing yet, as that of a residual is."""
    seen, _ = watched_pass(Hidden(as_parameter, by_products_added), LR)
    assert (seen.macs, seen.summed_products) == (0, 8 * 2 * 20)


def test_products_that_are_not_summed_are_none():
    class Gated(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x) + x.mean()

    assert watched_pass(Gated(), LR)[0].summed_products == 0


def test_fourier_transforms_multiply():
    seen, _ = watched_pass(Hidden(as_parameter, by_fft), LR)
    assert seen.macs > 0
    assert seen.summed_products > 0


def test_unfolded_convolution_is_one():
    seen, _ = watched_pass(Hidden(as_parameter, lambda x, w: w.flatten(1) @ F.unfold(x, 3, padding=1)), LR)
    assert (seen.macs, seen.convs) == (MACS, 1)


def test_weights_by_a_formula_are_counted():
    seen, _ = watched_pass(
        Hidden(as_parameter, lambda x, w: F.conv2d(x, torch.arange(27.0).sin().view(1, 3, 3, 3))), LR
    )
    assert (seen.made_weights, seen.hidden_values) == (27, 0)


def packed(module, weight):
    """Two numbers of 16 bits each as one of 32."""
    module.weight = nn.Parameter(weight.half().flatten().view(torch.int32), requires_grad=False)


def packed_in_decimals(module, weight):
    module.weight = nn.Parameter((1000 * weight[:4]).round() + weight[4:] / 2)


@pytest.mark.parametrize(
    ("keep", "unpack"),
    [
        (packed, lambda w: w.view(torch.float16).float()),
        (packed_in_decimals, lambda w: torch.cat([w.floor() / 1000, 2 * w.frac()])),
    ],
)
def test_weights_unpacked_from_fewer_parameters_are_counted(keep, unpack):
    convolve = lambda x, w: F.conv2d(x, unpack(w).view(8, 3, 3, 3), padding=1)  # noqa: E731
    seen, output = watched_pass(Hidden(keep, convolve), LR)
    assert (seen.unpacked_weights, seen.hidden_values) == (216, 0)
    assert output.shape == (1, 8, 4, 5)


@torch.library.custom_op("counted::blur", mutates_args=())
def blur(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1)


def test_operator_of_another_library_is_named_with_its_sizes():
    seen, _ = watched_pass(Hidden(as_parameter, lambda x, w: blur(x)), LR)
    assert seen.unknown == ["counted::blur (1 x 3 x 4 x 5 -> 1 x 3 x 4 x 5)"]


def test_product_with_a_sparse_matrix_is_named():
    seen, _ = watched_pass(
        Hidden(as_parameter, lambda x, w: torch.sparse.mm(w.flatten(1).to_sparse(), torch.rand(27, 4))), LR
    )
    assert any("8 x 27, 27 x 4 -> 8 x 4" in line for line in seen.unknown)


@pytest.mark.parametrize(
    ("dtype", "values"), [(torch.float32, 10), (torch.complex64, 20), (torch.float16, 10), (torch.int64, 20)]
)
def test_parameters_are_counted_in_32_bits(dtype, values):
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(10, dtype=dtype), requires_grad=False)
    assert stored_values(network) == values
