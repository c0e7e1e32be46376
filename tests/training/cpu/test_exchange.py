"""Networks whose convolutions are exchanged give what they gave."""

import pytest
import torch
from torch import fx, nn

from training import loop
from training.cpu import convolution
from training.cpu.convolution import chosen, convolve, convolve_attention, convolve_silu
from training.cpu.exchange import is_made_here, rewritten, with_own_convolutions
from training.recipe import load_recipe
from utils.files import ROOT
from utils.zoo.registry import build_model, find_entry, read_registry

here = pytest.mark.skipif(chosen() is None, reason="no compiler for them")


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
    run = with_own_convolutions(network, lr)
    assert isinstance(run, fx.GraphModule) or isinstance(run._frame[0], fx.GraphModule)
    exchanged = outputs_and_gradients(network, run, lr)
    for a, b, c in zip(exact, usual, exchanged, strict=True):
        error, allowed = (c - a).norm(), share * (b - a).norm() + 1e-3 * a.norm()
        assert error <= allowed  # bfloat16 is as far from the exact numbers in torch's convolutions


@here
def test_silu_and_attention_are_taken_along():
    """NanoSR: six blocks of four convolutions, two of them before SiLU and one before the attention, and three more."""
    plain = build_model(find_entry(7, read_registry()))
    assert counted(rewritten(plain)) == [6 + 2, 12, 6]  # beside the blocks' first: conv_2 and the upsampler's


@pytest.mark.parametrize(
    ("way", "channels", "expected"),
    [("AMX", (16, 48), True), ("AMX", (48, 40), False), ("WINOGRAD", (48, 40), True), ("WINOGRAD", (3, 48), False)],
)
def test_numbers_of_channels_are_such_as_the_way_takes(monkeypatch, way, channels, expected):
    monkeypatch.setattr(convolution, "chosen", lambda: getattr(convolution, way))
    assert is_made_here(nn.Conv2d(*channels, 3, padding=1)) is expected


def test_only_convolutions_that_are_possible_are_exchanged(monkeypatch):
    monkeypatch.setattr(convolution, "chosen", lambda: convolution.WINOGRAD)
    others = [
        nn.Conv2d(48, 48, 1),
        nn.Conv2d(48, 48, 3),
        nn.Conv2d(48, 48, 3, padding=1, stride=2),
        nn.Conv2d(48, 48, 3, padding=2, dilation=2),
        nn.Conv2d(48, 48, 3, padding=1, groups=3),
        nn.Conv2d(48, 48, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(48, 48, 3, padding="same"),
    ]
    assert not any(map(is_made_here, others))


def test_network_whose_path_hangs_on_its_values_stays_as_it_is():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.mean() > 0 else -x

    net = Net()
    assert rewritten(net) is net


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
@pytest.mark.parametrize(("context", "is_exchanged"), [(torch.no_grad, False), (torch.enable_grad, True)])
def test_network_with_a_part_without_gradients_stays_as_it_is(context, is_exchanged):
    net = Halved(context)
    x, states = torch.rand(2, 16, 8, 8), torch.get_rng_state()
    run = with_own_convolutions(net, x)
    assert isinstance(run, fx.GraphModule) is is_exchanged
    assert net.norm.num_batches_tracked == 0  # it was tried on a copy
    assert torch.equal(torch.get_rng_state(), states)


@pytest.mark.parametrize("way", [None, pytest.param(chosen(), marks=here)])
def test_machine_without_a_way_runs_the_network_itself(monkeypatch, way):
    monkeypatch.setattr(loop, "chosen", lambda: way)
    recipe = load_recipe(ROOT / "training" / "recipes" / "equal_conditions.toml", ["model = 0", 'form = "plain"'])
    trainer = loop.Trainer(recipe, "cpu")
    assert (trainer.forward is trainer.model) is (way is None)


@here
def test_weights_stay_those_of_the_network():
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
    run = rewritten(net)
    assert isinstance(run, fx.GraphModule)
    assert dict(run.named_parameters())["0.weight"] is net[0].weight
