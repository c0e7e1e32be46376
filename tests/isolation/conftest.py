"""What the tests of isolation share: model files, and an organizers' repository with all their habits."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers import network_weights

collect_ignore = ["repository"]  # its test_demo.py is no test
REPOSITORY = Path(__file__).parent / "repository"


@pytest.fixture
def repository(tmp_path):
    """A copy of the small organizers' repository, with the weights that its entries load."""
    folder = tmp_path / "NTIRE_ESR"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    zoo = folder / "model_zoo"
    zoo.mkdir()
    weights = network_weights()
    torch.save(weights, zoo / "team01_Plain.pth")
    torch.save({"params_ema": weights}, zoo / "team02_Nested.pth")
    torch.save({**weights, "teacher.weight": torch.ones(3)}, zoo / "team03_Lenient.pth")
    repa = {"branches.0.weight": weights["conv.weight"], "conv.bias": weights["conv.bias"]}
    torch.save(repa, zoo / "team05_Repa.pth")
    torch.save(Path("unpickled"), zoo / "team08_Pickled.pth")
    torch.save(weights, folder / "models" / "team06_weights.pt")
    return folder
