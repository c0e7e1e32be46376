"""What the training tests share: a tiny recipe, photographs, and a prepared set."""

import socket
import subprocess
import sys

import pytest

from tests.conftest import photograph
from utils.data.images import write_png
from utils.files import ROOT

RECIPE = """
model = 7
batch = 2
hr_patch = 32
candidates = 1
seed = 7
output_init = 0.02
loss = "l1"
steps = 6
learning_rate = 1e-3
muon_learning_rate = 1e-3
warmup = 2
milestones = [4]
gamma = 0.5
cooldown = 0
betas = [0.9, 0.99]
eps = 1e-8
weight_decay = 0.0
clip_norm = 1.0
ema_decay = 0.9
form = "collapsed"
precision = "float32"
channels_last = true
compile = false
cuda_graph = false
log_every = 1
validate_every = 3
checkpoint_every = 2
"""

SMALL_CUT = ("--size", 64, "--step", 32, "--smallest", 32, "--images-per-shard", 2)


RECIPES = {  # a model with a training form, and one that is trained as it is, described as the registry does
    "collapsed": RECIPE,
    "plain": RECIPE.replace("model = 7", 'model = { file = "models/team00_SPAN.py", class = "SPAN" }').replace(
        '"collapsed"', '"plain"'
    ),
}
FILES = {"collapsed": {"nanosr_train.pth", "team07_NanoSR.pth"}, "plain": {"team00_SPAN.pth"}}
both_kinds = pytest.mark.parametrize("recipe_path", RECIPES, indirect=True)


@pytest.fixture
def recipe_path(tmp_path, request):
    """A tiny recipe; `both_kinds` gives one of each."""
    path = tmp_path / f"{getattr(request, 'param', 'collapsed')}.toml"
    path.write_text(RECIPES[path.stem])
    return path


def write_photographs(folder):
    """Write three HR images of different sizes."""
    for number, size in enumerate([(64, 96), (50, 70), (130, 41)]):
        write_png(folder / f"{number}.png", photograph(*size, number))
    return folder


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path / "hr")


@pytest.fixture
def prepare(command):
    def run(hr, out, *arguments):
        return command("-m", "training.prepare", "--hr", hr, "--out", out, "--workers", 1, *arguments)

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The photographs, prepared by two workers; for reading only."""
    folder = tmp_path_factory.mktemp("prepared")
    hr = write_photographs(folder / "hr")
    result = python("-m", "training.prepare", "--hr", hr, "--out", folder / "out", "--workers", 2, *SMALL_CUT)
    assert result.returncode == 0, result.stderr
    return folder / "out"


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=200, **options
    )


def two_processes():
    """The words by which torchrun runs a script twice, at a port of its own."""
    return ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port()]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
