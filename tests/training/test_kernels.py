"""Networks whose convolutions are exchanged give what they gave."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from kernels import convolution
from kernels.convolution import convolve, convolve_attention, convolve_silu, fastest
from training.kernels import is_exchanged, rewritten, with_kernel
from training.recipe import load_recipe
from training.setup import chosen_kernels, set_up
from utils.errors import HarnessError
from utils.files import ROOT
from utils.zoo.registry import build_model, find_entry, read_registry

here = pytest.mark.skipif(fastest() is None, reason="no compiler for them")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def counted(network):
    """How often a graph calls each kind of convolution."""
    calls = [node.target for node in network.graph.nodes if node.op == "call_function"]
    return [calls.count(function) for function in (convolve, convolve_silu, convolve_attention)]


def outputs_and_gradients(network, run, lr):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        sr = run(lr).float()
    sr.square().mean().backward()
    return [sr.detach(), *(weight.grad.clone() for weight in network.parameters())]


# PAN has a hundred and more weights whose gradients are small: chance takes one of them further.
@here
@pytest.mark.parametrize(
    ("model_id", "share"), [(0, 1.5), (7, 1.5), slow(107, 1.5), slow(120, 2), slow(124, 1.5), (126, 1.5)]
)
def test_network_with_its_convolutions_exchanged_is_the_network(model_id, share):
    torch.manual_seed(3)
    network = build_model(find_entry(model_id, read_registry()))
    lr = torch.rand(2, 3, 32, 32) * find_entry(model_id, read_registry()).data_range
    network.to(memory_format=torch.channels_last)
    exact = outputs_and_gradients(network.double(), lambda x: network(x.double()), lr)
    network.float()
    usual = outputs_and_gradients(network, network, lr)
    run = with_kernel(network, lr, fastest())
    assert isinstance(run, fx.GraphModule) or isinstance(run._frame[0], fx.GraphModule)
    exchanged = outputs_and_gradients(network, run, lr)
    for a, b, c in zip(exact, usual, exchanged, strict=True):
        error, allowed = (c - a).norm(), share * (b - a).norm() + 1e-3 * a.norm()
        assert error <= allowed  # bfloat16 is as far from the exact numbers in torch's convolutions


@here
def test_silu_and_attention_are_taken_along():
    """NanoSR: six blocks of four convolutions, two of them before SiLU and one before the attention, and three more."""
    plain = build_model(find_entry(7, read_registry()))
    assert counted(rewritten(plain, fastest())) == [
        6 + 2,
        12,
        6,
    ]  # beside the blocks' first: conv_2 and the upsampler's


@pytest.mark.parametrize(
    ("kernel", "channels", "expected"),
    [("amx", (16, 48), True), ("amx", (48, 40), False), ("winograd", (48, 40), True), ("winograd", (3, 48), False)],
)
def test_numbers_of_channels_are_such_as_the_kernel_takes(kernel, channels, expected):
    assert is_exchanged(nn.Conv2d(*channels, 3, padding=1), kernel) is expected


def test_only_convolutions_that_are_possible_are_exchanged():
    others = [
        nn.Conv2d(48, 48, 1),
        nn.Conv2d(48, 48, 3),
        nn.Conv2d(48, 48, 3, padding=1, stride=2),
        nn.Conv2d(48, 48, 3, padding=2, dilation=2),
        nn.Conv2d(48, 48, 3, padding=1, groups=3),
        nn.Conv2d(48, 48, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(48, 48, 3, padding="same"),
    ]
    assert not any(is_exchanged(other, "winograd") for other in others)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y if y.mean() > 0 else -y


def test_network_whose_path_hangs_on_its_values_has_no_graph():
    assert with_kernel(Branching(), torch.rand(2, 3, 8, 8), "winograd") is None


class Halved(nn.Module):
    """A network, one half of which has gradients that no graph knows of; it counts its batches, too."""

    def __init__(self, context):
        super().__init__()
        self.context = context
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        first, second = self.convolutions
        with self.context():
            y = first(x)
        return self.norm(y + second(x))


@here
@pytest.mark.parametrize(("context", "is_taken"), [(torch.no_grad, False), (torch.enable_grad, True)])
def test_network_with_a_part_without_gradients_stays_as_it_is(context, is_taken):
    net = Halved(context)
    x, states = torch.rand(2, 16, 8, 8), torch.get_rng_state()
    run = with_kernel(net, x, fastest())
    assert isinstance(run, fx.GraphModule) is is_taken
    assert net.norm.num_batches_tracked == 0  # it was tried on a copy
    assert torch.equal(torch.get_rng_state(), states)


def recipe_of(*changes):
    path = ROOT / "training" / "recipes" / "equal_conditions.toml"
    return load_recipe(path, ["model = 0", 'form = "plain"', 'precision = "bfloat16"', *changes])


@pytest.mark.parametrize("works", [False, pytest.param(True, marks=here)])
def test_machine_without_kernels_runs_the_network_itself(monkeypatch, works):
    if not works:
        monkeypatch.setattr(convolution, "fastest", lambda: None)
    setup = set_up(recipe_of(), "cpu")
    assert (setup.forward is setup.model) is not works
    assert (setup.recipe.kernels == "torch") is not works


def test_kernels_that_this_machine_lacks_are_refused(monkeypatch):
    monkeypatch.setattr(convolution, "works", lambda kernel: False)
    with pytest.raises(HarnessError, match='kernels = "amx": the processor or the C compiler of this machine lacks'):
        set_up(recipe_of('kernels = "amx"'), "cpu")


def test_kernels_are_for_bfloat16_alone():
    with pytest.raises(HarnessError, match="are for bfloat16 on a CPU"):
        set_up(recipe_of('kernels = "winograd"', 'precision = "float32"'), "cpu")


@here
def test_network_that_cannot_be_exchanged_says_so(tmp_path):
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n\n\n"
        + inspect.getsource(Branching).replace(
            "return y if", "y = nn.functional.pixel_shuffle(y, 4)\n        return y if"
        )
    )
    model = f"model = {{ file = '{tmp_path / 'branching.py'}', class = 'Branching' }}"
    setup = set_up(recipe_of(model, "output_init = 0.0"), "cpu")
    assert setup.recipe.kernels == "torch"
    assert "torch.fx or the kernels cannot take its convolutions" in setup.notes[-1]
    with pytest.raises(HarnessError, match='cannot take its convolutions; set kernels = "torch"'):
        set_up(recipe_of(model, "output_init = 0.0", f'kernels = "{fastest()}"'), "cpu")


@pytest.mark.parametrize(
    ("before", "works", "expected"),
    [("torch", True, ("torch", 0)), ("winograd", True, ("winograd", 0)), ("winograd", False, ("torch", 1))],
)
def test_run_goes_on_with_its_kernels_where_they_work(monkeypatch, before, works, expected):
    monkeypatch.setattr(convolution, "works", lambda kernel: works)
    recipe = recipe_of()
    kernels, notes = chosen_kernels(recipe, torch.device("cpu"), replace(recipe, kernels=before))
    assert (kernels, len(notes)) == expected


@here
def test_weights_stay_those_of_the_network():
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    run = rewritten(net, fastest())
    assert isinstance(run, fx.GraphModule)
    assert dict(run.named_parameters())["0.weight"] is net[0].weight
