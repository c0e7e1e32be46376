"""A team's own model the whole way, as the README tells it: train, measure, check, pack."""

import sys
import zipfile

import pytest
import torch

import train
import training.fuse
from tests.helpers import RECIPE, stored, write_table
from training.recipe import load_recipe
from utils.data.sample import ensure_sample
from utils.errors import HarnessError

TOY = '''"""A toy network for x4 super-resolution."""

from torch import nn


class Toy(nn.Module):
    """B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W."""

    def __init__(self, channels=8):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU())
        self.tail = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))
        self.enlarge = nn.Upsample(scale_factor=4, mode="bicubic")
        nn.init.zeros_(self.tail[0].weight)
        nn.init.zeros_(self.tail[0].bias)

    def forward(self, lr):
        return self.enlarge(lr) + self.tail(self.body(self.head(lr)))
'''


def test_toy_network_is_trained_measured_checked_and_packed(command, prepare, pairs, tmp_path):
    file, run, photographs = tmp_path / "team42_Toy.py", tmp_path / "run", ensure_sample() / "DIV2K_LSDIR_valid_HR"
    prepared = tmp_path / "prepared"
    assert prepare(photographs, prepared).returncode == 0
    file.write_text(TOY)
    recipe = RECIPE.replace("model = 7", f'model = {{ file = "{file}", class = "Toy", arguments = [8] }}')
    recipe = recipe.replace('"collapsed"', '"plain"').replace("output_init = 0.02", "output_init = 0.0")
    (tmp_path / "toy.toml").write_text(
        recipe.replace("steps = 6", "steps = 100").replace("muon_learning_rate = 1e-3", "muon_learning_rate = 0.0")
    )
    train = ("train.py", tmp_path / "toy.toml", "--train_dir", prepared, "--validation_dir", pairs, "--run_dir", run)
    result = command(*train, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in run.glob("*.pth")} == {"team42_Toy.pth"}

    write_table(file, "Toy", arguments=[8], checkpoint="run/team42_Toy.pth")
    what = ("--model_file", file)
    measure = ("--data_dir", pairs, "--device", "cpu", "--runs", 1, "--warmup", 0, "--repeats", 1)
    result = command("eval.py", *what, *measure, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = stored(tmp_path / "results")["Toy"]
    assert record["complexity"]["params"] == 224 + 584 + 432 * 8 + 48
    assert record["environment"]["isolation"] in ("process", "sandbox")
    assert record["audit"]["findings"] == []

    result = command("-m", "utils.submission", "check", *what, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    result = command("-m", "utils.submission", "pack", *what, "--out_file", tmp_path / "toy.zip", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(tmp_path / "toy.zip") as archive:
        assert {"models/team42_Toy.py", "model_zoo/team42_Toy.pth", "select_model.py"} <= set(archive.namelist())


MISTAKEN = (
    TOY
    + """

class Raises(Toy):
    def forward(self, lr):
        raise KeyError("kind")  # Raises


class OtherChannels(Toy):
    def forward(self, lr):
        return self.tail(lr)  # OtherChannels


class Tuple(Toy):
    def forward(self, lr):
        return super().forward(lr), lr


class Grey(Toy):
    def forward(self, lr):
        return super().forward(lr).mean(1, keepdim=True)


class WithoutGradient(Toy):
    def forward(self, lr):
        return super().forward(lr).detach()


class Bicubic(nn.Module):
    def forward(self, lr):
        return nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")


class NotFused(Toy):
    def fuse(self):
        raise KeyError("kind")  # NotFused


class OnlyTrained(Toy):
    def forward(self, lr):
        return super().forward(lr) if self.training else lr
"""
)
COSTS = {
    "Raises": "fails in training (line {}: KeyError: 'kind')",
    "OtherChannels": "fails in training (line {}: RuntimeError: Given groups=1, weight of size [48, 8, 3, 3]",
    "Tuple": "output is tuple for an LR image of 8 x 8, expected (2, 3, 32, 32)",
    "Grey": "output is (2, 1, 32, 32) for an LR image of 8 x 8, expected (2, 3, 32, 32)",
    "WithoutGradient": "no gradient comes back from its output",
    "Bicubic": "the network has no weights to train",
    "NotFused": "fails in training (line {}: KeyError: 'kind')",
    "OnlyTrained": "output is (1, 3, 16, 24) for an LR image of 24 x 16, expected (1, 3, 64, 96)",
}


@pytest.fixture
def train_here(prepared, pairs, tmp_path, monkeypatch):
    """Trains the class of a file, as it is written, in this process, into `tmp_path`/run."""

    def run(file, name, precision="float32"):
        recipe = RECIPE.replace("model = 7", f'model = {{ file = "{file}", class = "{name}" }}')
        recipe = recipe.replace('"collapsed"', '"plain"').replace("output_init = 0.02", "output_init = 0.0")
        (tmp_path / "own.toml").write_text(recipe.replace("float32", precision))
        words = (
            "train.py",
            tmp_path / "own.toml",
            "--train_dir",
            prepared,
            "--validation_dir",
            pairs,
            "--device",
            "cpu",
        )
        monkeypatch.setattr(sys, "argv", [*map(str, words), "--run_dir", str(tmp_path / "run")])
        train.main()

    return run


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mistake_in_a_network_costs_a_line(train_here, name, precision, tmp_path):
    file = tmp_path / "team42_Mistaken.py"
    file.write_text(MISTAKEN)
    with pytest.raises(HarnessError) as caught:
        train_here(file, name, precision)
    line = next((number for number, text in enumerate(MISTAKEN.splitlines(), 1) if text.endswith(f"# {name}")), None)
    assert str(caught.value).startswith(f"{file}: {COSTS[name].format(line)}")


REPARAMETERIZED = """
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4)

    def forward(self, lr):
        return self.shuffle(self.conv(lr))


class Rep(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(48)

    def forward(self, lr):
        return self.shuffle(self.norm(self.conv(lr)))

    def fuse(self):
        plain = Plain()
        plain.conv = fuse_conv_bn_eval(self.conv, self.norm)  # which refuses a network in training
        return plain
"""


def test_network_with_fuse_is_its_own_training_form(train_here, tmp_path, monkeypatch):
    file, run = tmp_path / "team43_Rep.py", tmp_path / "run"
    file.write_text(REPARAMETERIZED)
    train_here(file, "Rep")
    plain = torch.load(run / "team43_Rep.pth", weights_only=True)
    assert plain.keys() == {"conv.weight", "conv.bias"}
    average = torch.load(run / "team43_Rep_train.pth", weights_only=True)
    shrunk = average["norm.weight"] / (average["norm.running_var"] + 1e-5).sqrt()
    assert torch.allclose(plain["conv.weight"], average["conv.weight"] * shrunk.view(-1, 1, 1, 1), rtol=1e-5)
    monkeypatch.setattr(sys, "argv", ["fuse", str(run / "state.pt"), "--out_file", str(tmp_path / "fused.pth")])
    training.fuse.main()
    assert torch.equal(torch.load(tmp_path / "fused.pth", weights_only=True)["conv.weight"], plain["conv.weight"])


def test_step_that_is_no_cuda_graph_is_named(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE.replace("cuda_graph = false", "cuda_graph = true"))
    error = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    reason = train.how_to_fix(error, "r.toml", load_recipe(tmp_path / "r.toml"))
    assert reason.startswith("r.toml: no CUDA graph of a step (RuntimeError: CUDA error: operation not")
    assert reason.endswith("; set cuda_graph = false")
