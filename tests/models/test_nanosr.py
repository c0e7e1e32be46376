"""models/team07_NanoSR.py and models/training/nanosr.py: the published figures, and exactness between all forms."""

import ast
import sys

import pytest
import torch

from models.team07_NanoSR import NanoSR_inference
from models.training.nanosr import NanoSR_train
from models.training.reparam import GatedRepMBConv, RepMBConv
from tests.helpers import CPU, benchmark_psnr, photograph
from utils.data.datasets import open_dataset
from utils.data.images import to_tensor
from utils.evaluate.evaluation import evaluate
from utils.evaluate.runner import Runner
from utils.files import ROOT
from utils.measure.complexity import measure_complexity
from utils.record import WeightsInfo
from utils.zoo.checkpoints import load_state_dict, load_strictly
from utils.zoo.registry import LoadedModel, find_entry, read_registry


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_fused_form_has_the_published_complexity():
    counts = measure_complexity(NanoSR_inference(3, 3).eval())
    assert (f"{counts.params / 1e6:.3f}", f"{counts.activations / 1e6:.2f}", counts.convs) == ("0.551", "88.08", 28)
    assert counts.flops == 36_021_731_328


@pytest.mark.slow
def test_training_form_has_the_published_complexity():
    counts = measure_complexity(NanoSR_train(form="branches").eval())
    assert counts.params == 2_423_112
    assert (f"{counts.flops / 1e9:.2f}", f"{counts.activations / 1e6:.2f}", counts.convs) == ("156.48", "472.25", 100)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("team07_NanoSR.py", {"torch"}),
        ("nanosr_fast.py", {"torch", "triton"}),  # where it is wanted; it comes with torch
    ],
)
def test_what_an_organizer_copies_needs_torch_alone(name, packages):
    tree = ast.parse((ROOT / "models" / name).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert {module.partition(".")[0] for module in imported} - sys.stdlib_module_names == packages


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (13, 17), (16, 16)])
def test_branches_collapsed_and_fused_agree_borders_included(size):
    model = randomized(NanoSR_train()).double()
    lr = torch.rand(2, 3, *size, dtype=torch.float64)
    collapsed = model(lr)
    model.set_form("branches")
    branches = model(lr)
    assert branches.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert relative(collapsed, branches) < 1e-10
    assert relative(model.fuse()(lr), branches) < 1e-10
    for sides in ((..., slice(0, 4), slice(None)), (..., slice(None), slice(-4, None))):
        assert relative(collapsed[sides], branches[sides]) < 1e-10


@pytest.mark.parametrize("block", [RepMBConv(3, 5), RepMBConv(4, 4), GatedRepMBConv(8)])
def test_a_block_collapses_to_one_convolution(block):
    parameters = dict(randomized(block).double().named_parameters())
    kernel, bias = block.collapse(parameters)
    x = torch.randn(1, kernel.shape[1], 6, 7, dtype=torch.float64)
    assert relative(torch.nn.functional.conv2d(x, kernel, bias, padding=1), block(x)) < 1e-12


def test_gate_starts_as_the_description_says():
    gate = GatedRepMBConv.gate(dict(GatedRepMBConv(48).named_parameters()))
    hidden = 96 * 0.1 / (1 + torch.exp(torch.tensor(-96 * 0.1)))  # silu of ones times the token
    assert torch.allclose(gate, torch.sigmoid(24 * hidden).expand(96))


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form is 'fused'"):
        NanoSR_train(form="fused")


@pytest.mark.parametrize(
    ("benchmark", "expected"), [("Set5", 30.1985), pytest.param("Set14", 26.8233, marks=pytest.mark.slow)]
)
def test_published_weights_reach_the_published_psnr(shared, benchmark, expected):
    model = NanoSR_inference(3, 3).eval()
    path = shared / "official" / "team07_NanoSR.pth"
    load_strictly(model, load_state_dict(path), path)
    assert benchmark_psnr(model, shared, benchmark) == pytest.approx(expected, abs=1e-3)


# PSNR [dB] of the published weights and of those in model_zoo/ on images of the challenge's validation set.
CHALLENGE_IMAGES = {
    "0806": (28.418, 28.182), "0814": (28.324, 28.211), "0830": (24.522, 24.500), "0833": (34.236, 34.259),
    "0846": (25.611, 25.695), "0852": (30.057, 30.018), "0854": (24.973, 24.972), "0868": (32.919, 32.851),
    "0877": (40.332, 40.353), "0881": (25.973, 25.898), "0892": (30.549, 30.496), "0900": (28.233, 28.143),
}  # fmt: skip
PUBLISHED_SSIM = 0.85602  # mean of the twelve


def published_and_shipped(shared):
    for path in (shared / "official" / "team07_NanoSR.pth", ROOT / "model_zoo" / "team07_NanoSR.pth"):
        model = NanoSR_inference(3, 3).eval()
        load_strictly(model, load_state_dict(path), path)
        yield model


@pytest.mark.parametrize(
    "name", [name if name == "0830" else pytest.param(name, marks=pytest.mark.slow) for name in CHALLENGE_IMAGES]
)
def test_images_of_the_challenge_are_restored_as_the_published_log_says(shared, name):
    values = [benchmark_psnr(model, shared, "DIV2K12", name) for model in published_and_shipped(shared)]
    assert values == pytest.approx(CHALLENGE_IMAGES[name], abs=1e-3)


@pytest.mark.slow
def test_published_weights_reach_the_published_ssim(shared):
    dataset = open_dataset(shared / "benchmarks" / "DIV2K12")
    model = next(published_and_shipped(shared))
    runner = Runner(LoadedModel(model, find_entry(7, read_registry()), WeightsInfo(sha256="sha", provenance="")), CPU)
    results = list(evaluate(runner, dataset, with_ssim=True))
    assert sum(result.ssim for result in results) / len(results) == pytest.approx(PUBLISHED_SSIM, abs=1e-5)
    assert sum(result.psnr for result in results) / len(results) == pytest.approx(29.5122, abs=1e-3)


def test_shipped_weights_of_both_forms_are_the_same_network():
    fused, trained = NanoSR_inference(3, 3), NanoSR_train(form="branches")
    for model, name in ((fused, "team07_NanoSR.pth"), (trained, "nanosr_train.pth")):
        path = ROOT / "model_zoo" / name
        load_strictly(model, load_state_dict(path), path)
        model.double()
    lr = to_tensor(photograph(64, 72)).double()  # trained weights may answer noise by large values
    assert 255 * (fused(lr) - trained(lr)).abs().max() < 1e-4  # grey levels


def randomized(module):
    """Draw every parameter anew, so that nothing is exact only because it starts at zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return module
