"""What the referee's tests share: strangers' model files, and an organizers' repository with all their habits."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.robustness import NETWORK
from utils.referee.sandbox import why_not

collect_ignore = ["repository"]  # its test_demo.py is no test
REPOSITORY = Path(__file__).parent / "repository"
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")


def small_weights():
    """Weights of NETWORK that change little of its bicubic upscaling."""
    torch.manual_seed(5)
    state = nn.Conv2d(3, 48, 3, padding=1).state_dict()
    return {f"conv.{key}": 0.01 * value for key, value in state.items()}


@pytest.fixture
def stranger(tmp_path):
    """Writes a model file, dishonest as told, and its weights; gives eval.py's words for them."""

    def write(top="", constructor="pass", forward="pass"):
        file, weights = tmp_path / "team42_Net.py", tmp_path / "w.pth"
        file.write_text(NETWORK.format(top=top, constructor=constructor, forward=forward))
        torch.save(small_weights(), weights)
        return "--model_file", file, "--class", "Net", "--checkpoint", weights

    return write


@pytest.fixture
def repository(tmp_path):
    """A copy of the small organizers' repository, with the weights that its entries load."""
    folder = tmp_path / "NTIRE_ESR"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    zoo = folder / "model_zoo"
    zoo.mkdir()
    weights = small_weights()
    torch.save(weights, zoo / "team01_Plain.pth")
    torch.save({"params_ema": weights}, zoo / "team02_Nested.pth")
    torch.save({**weights, "teacher.weight": torch.ones(3)}, zoo / "team03_Lenient.pth")
    repa = {"branches.0.weight": weights["conv.weight"], "conv.bias": weights["conv.bias"]}
    torch.save(repa, zoo / "team05_Repa.pth")
    torch.save(Path("unpickled"), zoo / "team08_Pickled.pth")
    torch.save(weights, folder / "models" / "team06_weights.pt")
    return folder
