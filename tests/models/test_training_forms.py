"""models/training/: every training form is one function in its branches, collapsed, and fused to the plain network."""

import pytest
import torch

from models.plainusr import PlainUSR
from models.team00_SPAN import SPAN
from models.team07_NanoSR import NanoSR_inference
from models.training.nanosr import NanoSR_train
from models.training.plainusr import PlainUSR_train
from models.training.reparam import GatedRepMBConv, RepMBConv
from models.training.span import SPAN_train

FORMS = {NanoSR_train: NanoSR_inference, SPAN_train: SPAN, PlainUSR_train: PlainUSR}
pytestmark = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def perturbed(model):
    """Move every parameter, so that nothing is exact only because it starts at zero or one; open the gates halfway."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gate_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def test_all_ways_give_one_function_border_included(form):
    model = perturbed(form()).double()
    lr = torch.rand(2, 3, 11, 9, dtype=torch.float64)
    model.set_form("branches")
    branches = model(lr)
    model.set_form("collapsed")
    assert relative(model(lr), branches) < 1e-12
    assert relative(model.fuse()(lr), branches) < 1e-12


def test_gradients_agree(form):
    model = perturbed(form()).double()
    lr = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    gradients = {}
    for way in ("branches", "collapsed"):
        model.set_form(way)
        model.zero_grad()
        model(lr).square().sum().backward()
        gradients[way] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in gradients["branches"].items():
        assert relative(gradients["collapsed"][name], expected) < 1e-9, name


def test_fusing_gives_the_plain_network_and_touches_nothing(form):
    model = form()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = model.fuse()
    assert type(fused) is FORMS[form]
    assert fused.state_dict().keys() == FORMS[form]().state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fused_weights_are_rounded_once(form):
    model = perturbed(form())
    fused = model.fuse().state_dict()
    for key, exact in model.double().collapsed_state().items():
        assert fused[key].dtype == torch.float32
        assert torch.equal(fused[key], exact.detach().float()), key


def test_convolutions_inside_are_grown(form):
    grown = {module for module in form().modules() if isinstance(module, (RepMBConv, GatedRepMBConv))}
    assert len(grown) == {NanoSR_train: 26, SPAN_train: 20, PlainUSR_train: 10}[form]
