"""docs/submitting.md: from weights to zip, branch and factsheet as a team does it, on the sample and on real images."""

import zipfile

import pytest

from tests.helpers import QUICK, git, write_checkout, write_model
from utils.data.sample import make_sample


@pytest.mark.slow
@pytest.mark.parametrize("data", ["sample", "DIV2K12"])
def test_five_commands_make_a_submission(command, tmp_path, data, request):
    images = (
        request.getfixturevalue("shared") / "benchmarks" / data if data != "sample" else make_sample(tmp_path / "s")
    )
    file, checkpoint = write_model(tmp_path, "team42_Net.py", None, "team42_Net.pth")
    checkout = write_checkout(tmp_path / "esr clone")
    (tmp_path / "team.toml").write_text('title = "Näive & simple"\nextra_data = true\n', encoding="utf-8")
    model = ("--model_file", file, "--checkpoint", checkpoint)

    def run(*words):
        result = command(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    run("eval.py", *model, "--data_dir", images, *QUICK)
    submission = "-m", "utils.submission"
    told = run(*submission, "check", *model)
    assert "to do" not in told
    assert told.splitlines()[-1].startswith(f"  python -m utils.submission pack --model_file {file} --checkpoint ")
    told = run(*submission, "pack", *model, "--into", checkout, "--data_dir", images)
    assert "the same images, PSNR, SSIM and counts as here, to the last digit" in told
    assert told.splitlines()[-1].startswith(" 3 files changed")
    git(checkout, "commit", "--quiet", "--message", "add")
    told = run(*submission, "check", *model, "--into", checkout)
    assert told.count("done ") == 4
    told = run(*submission, "results", *model, "--data_dir", images, "--team", "team.toml")
    assert "Read back" in told
    with zipfile.ZipFile(tmp_path / "submissions" / "team42_Net_valid.zip") as archive:
        assert "Extra Data [1] / No Extra Data [0] : 1" in archive.read("readme.txt").decode()
        assert len(archive.namelist()) == {"sample": 6, "DIV2K12": 12}[data] + 1
    told = run(*submission, "factsheet", *model, "--team", "team.toml")
    assert "team.toml: team.leader is missing; the document has a placeholder" in told
    assert (tmp_path / "submissions" / "team42_Net" / "architecture.pdf").exists()
    text = (tmp_path / "submissions" / "team42_Net" / "factsheet.tex").read_text(encoding="utf-8")
    assert r"Näive \& simple" in text
