"""A team's own model the whole way, as the README tells it: train, measure, check, pack."""

import json
import zipfile

from tests.conftest import found_beside_times
from tests.training.conftest import RECIPE

TOY = '''"""A toy network for x4 super-resolution."""

from torch import nn


class Toy(nn.Module):
    """B x 3 x H x W in [0, 1] gives B x 3 x 4H x 4W."""

    def __init__(self, channels=8):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU())
        self.tail = nn.Sequential(nn.Conv2d(channels, 48, 3, padding=1), nn.PixelShuffle(4))
        self.enlarge = nn.Upsample(scale_factor=4, mode="bilinear")

    def forward(self, lr):
        return self.enlarge(lr) + self.tail(self.body(self.head(lr)))
'''


def test_toy_network_is_trained_measured_checked_and_packed(command, prepared, pairs, tmp_path):
    file, run = tmp_path / "team42_Toy.py", tmp_path / "run"
    file.write_text(TOY)
    recipe = RECIPE.replace("model = 7", f'model = {{ file = "{file}", class = "Toy", arguments = [8] }}')
    recipe = recipe.replace('"collapsed"', '"plain"').replace("output_init = 0.02", "output_init = 0.0")
    (tmp_path / "toy.toml").write_text(recipe.replace("steps = 6", "steps = 40"))
    train = ("train.py", tmp_path / "toy.toml", "--data", prepared, "--validation", pairs, "--run_dir", run)
    result = command(*train, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in run.glob("*.pth")} == {"team42_Toy.pth"}

    what = ("--model_file", file, "--class", "Toy", "--args", "[8]", "--checkpoint", run / "team42_Toy.pth")
    measure = ("--data_dir", pairs, "--device", "cpu", "--runs", 1, "--warmup", 0, "--repeats", 1)
    result = command("eval.py", *what, *measure, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "results" / "records.json").read_text())["models"]["Toy"]
    assert record["complexity"]["params"] == 224 + 584 + 432 * 8 + 48
    assert record["audit"]["ran"] == "contestant"
    assert found_beside_times(record) == []

    result = command("-m", "utils.submission", "check", *what, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    result = command("-m", "utils.submission", "pack", *what, "--out", tmp_path / "toy.zip", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(tmp_path / "toy.zip") as archive:
        assert {"models/team42_Toy.py", "model_zoo/team42_Toy.pth", "select_model.py"} <= set(archive.namelist())
