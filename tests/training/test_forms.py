"""training/forms.py: any model of the registry or of a file is built, named and exported by what it offers."""

import msgspec
import pytest
import torch
from torch import nn

from models.team00_EFDN import EFDN
from models.team00_SPAN import SPAN
from models.team07_NanoSR import NanoSR_inference
from models.training.nanosr import NanoSR_train
from training.forms import build, fused, load_weights, trained_model
from training.optim.muon import hidden_weights
from training.setup import start_near_mean
from utils.errors import HarnessError
from utils.zoo.registry import ModelTable


def test_registry_names_the_training_form_and_the_files():
    trained = trained_model(7)
    assert (trained.train_file, trained.plain_file) == ("nanosr_train.pth", "team07_NanoSR.pth")
    assert type(build(trained, "collapsed")) is NanoSR_train
    assert build(trained, "branches").form == "branches"


def test_training_form_is_trained_as_the_network_that_it_fuses_to():
    assert trained_model(107) == trained_model(7)


def test_model_without_a_training_form_is_trained_as_it_is():
    trained = trained_model(0)
    network = build(trained, "plain")
    assert type(network) is EFDN  # one of whose layers is called fuse
    assert fused(network) is network
    assert (trained.train_file, trained.plain_file) == (None, "team00_EFDN.pth")


def test_model_of_a_table_comes_from_its_file():
    trained = trained_model(
        msgspec.convert({"file": "models/team00_SPAN.py", "class": "SPAN", "data_range": 255}, ModelTable)
    )
    assert type(build(trained, "plain")) is SPAN
    assert trained.entry.data_range == 255.0
    trained = trained_model(
        msgspec.convert({"file": "models/training/nanosr.py", "class": "NanoSR_train", "arguments": [3, 3]}, ModelTable)
    )
    assert (trained.train_file, trained.plain_file) == ("nanosr_train.pth", "nanosr.pth")


@pytest.mark.parametrize(
    ("model", "form", "reason"),
    [
        (7, "plain", 'NanoSR_train has no such form; write form = "collapsed", or leave it out'),
        (0, "collapsed", 'EFDN has no such form; write form = "plain", or leave it out'),
        (999, "plain", "--model_id 999: not in"),
        (ModelTable(file="models/team00_SPAN.py", class_name="SPAN", checkpoint="w.pth"), "plain", "weights by --init"),
        (ModelTable(file="models/nowhere.py", class_name="Net"), "plain", "models/nowhere.py': no such file"),
    ],
)
def test_what_is_not_there_is_named(model, form, reason):
    with pytest.raises(HarnessError, match=reason):
        build(trained_model(model), form)


@pytest.mark.parametrize("form", ["collapsed", "branches"])
def test_fused_weights_are_no_training_forms(tmp_path, form):
    torch.save({"params": NanoSR_inference().state_dict()}, tmp_path / "fused.pth")
    torch.save(SPAN().state_dict(), tmp_path / "other.pth")
    network = build(trained_model(7), form)
    with pytest.raises(HarnessError, match="these are fused weights, which do not fit NanoSR_train"):
        load_weights(network, tmp_path / "fused.pth")
    with pytest.raises(HarnessError, match="does not fit NanoSR_train"):
        load_weights(network, tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("model_id", "form", "outer"),
    [
        (0, "plain", {"head", "tail"}),
        (120, "plain", {"conv_first", "conv_last"}),
        (126, "collapsed", {"conv_1", "upsampler"}),
        (124, "collapsed", {"head", "tail"}),
    ],
)
def test_muon_gets_the_kernels_that_do_not_touch_the_image(model_id, form, outer):
    network = build(trained_model(model_id), form)
    hidden = {id(weight) for weight in hidden_weights(network)}
    kernels = {name: weight for name, weight in network.named_parameters() if weight.ndim == 4}
    assert {name.partition(".")[0] for name, weight in kernels.items() if id(weight) not in hidden} == outer


def test_first_output_is_near_the_mean():
    network = SPAN()
    start_near_mean(network, 0.0)
    with torch.no_grad():
        output = network(torch.rand(1, 3, 8, 8))
    assert torch.allclose(output.mean((0, 2, 3)), torch.tensor([0.4488, 0.4371, 0.4040]), atol=1e-6)


def test_network_whose_last_convolution_makes_no_image_is_named():
    with pytest.raises(HarnessError, match=r"16 channels in the last convolution.* set it to 0\.0"):
        start_near_mean(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 3, 8, 4)), 0.02)
    with pytest.raises(HarnessError, match="no convolution"):
        start_near_mean(nn.Linear(3, 48), 0.02)


def test_last_convolution_may_have_no_bias():
    network = nn.Conv2d(3, 48, 3, bias=False)
    before = network.weight.detach().clone()
    start_near_mean(network, 0.5)
    assert torch.equal(network.weight, before / 2)
