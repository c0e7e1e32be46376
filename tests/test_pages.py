"""README.md and docs/: every command in them runs, every link leads somewhere."""

import re
import shlex
import shutil

import pytest
from PIL import Image

from benchmarks.studies.comparison import panels
from tests.helpers import shipped_quality, write_checkout, write_pairs
from utils.data.datasets import open_dataset
from utils.data.sample import make_sample
from utils.files import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {  # what a command takes that is not here, by a word of it
    "bash run.sh": "an environment of its own",
    "source ": "an environment of its own",
    "NTIRE2026_ESR": "an organizers' checkout",
    "published/": "published weights",
    "team42_Net.py --checkpoint net.pth": "a stranger's file",
    "nanosr_500k": "DIV2K and LSDIR, and days on a GPU",
    "DIV2K_train_HR": "DIV2K and LSDIR",
}
README_LINES = 150


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page):
    """A page's commands without their comments, but for those that need what is not here."""
    lines = [line.split("  #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not any(word in line for word in NEEDS)]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the pages name: the project, data, photographs, and the README's own network and recipe."""
    monkeypatch.chdir(tmp_path)
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "results", "runs", "data", "models", "submissions"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    write_pairs(tmp_path / "DIR", list("ab"), size=(64, 96))
    write_checkout(tmp_path / "CHECKOUT")
    shutil.copy(ROOT / "docs" / "team.toml", tmp_path)
    make_sample(tmp_path / "data" / "sample")
    photos = tmp_path / "data" / "sample" / "DIV2K_LSDIR_valid_HR"
    (tmp_path / "PHOTOS").symlink_to(photos)
    shutil.copy(next(photos.iterdir()), "photo.jpg")
    network = next(block for block in blocks(ROOT / "README.md", "python") if "class Net" in block)
    (tmp_path / "models" / "team42_Net.py").write_text(network)
    recipe = blocks(ROOT / "README.md", "toml")[0]
    here = recipe.replace("models/", f"{tmp_path}/models/")  # a recipe's paths count from the project's folder
    (tmp_path / "net.toml").write_text(here)
    return tmp_path


def quick(words):
    """A command's words, with as little work as it takes."""
    if "--isolated" in words:
        words = [*words, "--model_id", "126"]
    if words[1] == "eval.py" and "--show" not in words and "--version" not in words:
        return [*words, "--runs", "1", "--warmup", "0", "--repeats", "1", "--device", "cpu"]
    if words[1] == "train.py":
        return [*words, "--set", "steps=4", "warmup=1", "cooldown=1", "validate_every=4", "log_every=2"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_run(command, desk, page):
    for line in commands(page):
        words = shlex.split(line)
        assert words[0] == "python", line
        result = command(*quick(words)[1:], cwd=desk)
        allowed = {0, 1} if "check" in words or "pack" in words else {0}  # four steps reach no rule on quality
        assert result.returncode in allowed, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_readme_is_a_first_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_python_of_readme_runs(desk):
    code = next(block for block in blocks(ROOT / "README.md", "python") if "upscale" in block)
    exec(compile(code, "README.md", "exec"), {})
    assert (desk / "photo_x4.png").exists()


def test_picture_of_readme_shows_the_figures_of_the_shipped_weights(tmp_path):
    """Its file holds the titles that were drawn."""
    pair = next(pair for pair in open_dataset(make_sample(tmp_path)).pairs if pair.name == "chelsea.png")
    titles = [" ".join(title.split()) for title, _ in panels(pair, [7])]
    with Image.open(ROOT / "docs" / "comparison.png") as picture:
        assert picture.info["Description"] == "; ".join(titles)


def test_tables_of_quality_show_the_data_file():
    readme, weights = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/weights.md"))
    of = {(row["name"], row["set"]): row for row in shipped_quality()}
    for name in {name for name, _ in of}:
        shown = " | ".join(of[name, benchmark]["psnr_db"] for benchmark in ("Set5", "Set14", "DIV2K12"))
        assert re.search(rf"\| {name} \(.*\) \| {re.escape(shown)} \|", readme), name
        rows = [of[name, benchmark] for benchmark in ("Set5", "Set14", "Photo2K", "DIV2K12")]
        cells = " | ".join(f"{row['psnr_db']} | {row['published_db']}" for row in rows)
        assert f"| {name} | {cells} |" in weights, name
