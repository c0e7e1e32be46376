"""utils/submission/factsheet.py and team.py: a document with all its parts, that compiles."""

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.helpers import record
from tests.submission.test_diagram import chain
from utils.errors import HarnessError
from utils.files import ROOT
from utils.submission import factsheet
from utils.submission.factsheet import ENGINES, known_values, write_factsheet
from utils.submission.team import Method, Team, TeamFile, read_team

needs_latex = pytest.mark.skipif(not any(map(shutil.which, ENGINES)), reason="no LaTeX engine is installed")
RECIPE = """
hr_patch = 256
batch = 64
betas = [0.9, 0.99]
loss = "l1"
learning_rate = 5e-4
muon_learning_rate = 0.0
milestones = [250000, 400000]
gamma = 0.5
cooldown = 0
"""


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(factsheet, "ENGINES", ())


def written(tmp_path, team=None, records=None, edition=2026):
    return write_factsheet(
        tmp_path / "factsheet.tex", team or TeamFile(), tmp_path, records or [record()], chain(), edition
    )


def test_empty_team_file_gives_a_placeholder_and_a_name_for_each_key(tmp_path, no_engine):
    document = written(tmp_path)
    text = document.tex.read_text()
    assert document.pdf is None
    assert text.count(r"\todo{") == len(document.missing) + 1  # the team's name stands twice
    fields = {f"team.{key}" for key in Team.__struct_fields__}
    fields |= {f"method.{key}" for key in Method.__struct_fields__} - {"method.run"}
    assert set(document.missing) == fields | {"title", "references"}


def test_parts_stand_in_the_order_of_the_organizers(tmp_path, no_engine):
    text = written(tmp_path, records=[record(), record(model={"name": "Small"})]).tex.read_text()
    parts = [r"\title", "Team details", "Team leader", "Link to the code", "Method details", "Architecture", "Training"]
    parts += ["Complexity", r"Net\_1 &", "Small &", r"\paragraph{Method complexity.} Small", "thebibliography"]
    assert sorted(parts, key=text.index) == parts


def test_example_has_all_keys_and_leaves_nothing_open(tmp_path, no_engine):
    path = ROOT / "docs" / "team.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    assert values.keys() == set(TeamFile.__struct_fields__)
    assert values["team"].keys() == set(Team.__struct_fields__)
    assert values["method"].keys() == set(Method.__struct_fields__) - {"run"}
    document = written(tmp_path, read_team(path))
    assert document.missing == []
    assert document.tex.read_text().count(r"\todo") == 1  # its definition


def test_training_run_tells_what_the_team_does_not(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(RECIPE)
    (run / "log.csv").write_text("step,seconds\n100,1800.0\n500000,86400.0\n")
    values = known_values(TeamFile(method=Method(run="run", batch=32)), tmp_path)
    assert values["method.batch"] == 32
    assert values["method.patches"] == "256 x 256 HR pixels, flipped and rotated"
    assert values["method.schedule"] == "multiplied by 0.5 at 250,000, 400,000 iterations"
    assert (values["method.iterations"], values["method.duration"]) == (500000, "24.0 hours")
    (run / "recipe.toml").unlink()
    with pytest.raises(HarnessError, match=r"recipe\.toml: cannot be read"):
        known_values(TeamFile(method=Method(run="run")), tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[team]\nleeder = 1", "team: unknown key leeder; docs/team.toml has all keys"),
        ("extra_data = 1", "extra_data: expected bool, got int"),
        ("title = ", "not valid TOML"),
    ],
)
def test_typo_in_the_teams_file_costs_a_line(tmp_path, text, line):
    (tmp_path / "team.toml").write_text(text)
    with pytest.raises(HarnessError, match=re.escape(line)):
        read_team(tmp_path / "team.toml")


NAMES = Team(
    name="Équipe Łódź #7 & 100%",
    leader="Zoë {Müller}_Håkansson \\ ~ ^ $",
    members=("Jan Novák", "Ana Pérez-Ñandú"),
    affiliations=("Universität Tübingen",),
    code="https://example.org/a_b?c=1&d",
)


@needs_latex
def test_document_compiles_with_accents_and_signs(tmp_path):
    folder = tmp_path / "a folder with spaces"
    document = written(folder, TeamFile(title="x_y $z$", team=NAMES, references=("A & B, 50 %.",)))
    assert document.pdf == folder / "factsheet.pdf"
    assert document.pdf.read_bytes().startswith(b"%PDF")
    assert {path.name for path in folder.iterdir()} == {
        "factsheet.tex", "factsheet.pdf", "architecture.pdf", "architecture.png",
    }  # fmt: skip
    if shutil.which("pdftotext"):
        words = subprocess.run(["pdftotext", document.pdf, "-"], capture_output=True, text=True, check=True).stdout
        for word in ("100%", "50 %", "Jan", "https://example.org/a_b?c=1&d", "Figure 1 shows"):
            assert word in words, word


@needs_latex
def test_what_latex_cannot_set_costs_a_line_and_the_document_stays(tmp_path):
    with pytest.raises(HarnessError, match="correct the team's file, or the document"):
        written(tmp_path, TeamFile(title="\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{PILE OF POO}"))
    assert (tmp_path / "factsheet.tex").exists()


def test_full_disk_costs_a_line(tmp_path, no_engine):
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(HarnessError, match="cannot be written"):
        written(tmp_path / "a")
