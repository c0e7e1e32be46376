"""eval.py --show: tables, scores and page of what was measured, without measuring."""

import shutil

import pytest

from tests.helpers import QUICK, record, write_pairs
from utils.record import store_record

VIEWS = ("--score", "--edition", 2026, "--report", "page")


@pytest.fixture(scope="module")
def _measured(tmp_path_factory):
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def show(command, tmp_path, pairs, _measured):
    """Runs eval.py --show in a folder where SPAN, then EFDN, were measured on `pairs` with images for a report."""
    if not (_measured / "results").exists():
        words = ("eval.py", *QUICK, "--data_dir", pairs, "--model_id", 126, 0, "--save_images")
        assert command(*words, cwd=_measured).returncode == 0
    shutil.copytree(_measured / "results", tmp_path / "results")

    def run(*words):
        return command("eval.py", "--show", *words, cwd=tmp_path)

    return run


def test_every_view_is_made_and_nothing_measured(show, pairs, tmp_path):
    records = tmp_path / "results" / "records.json"
    before, table = records.read_bytes(), (tmp_path / "results" / "factsheet.tex").read_text()
    (tmp_path / "results" / "factsheet.tex").unlink()
    result = show("--data_dir", pairs, *VIEWS)
    assert result.returncode == 0, result.stderr
    assert records.read_bytes() == before
    assert (tmp_path / "results" / "factsheet.tex").read_text() == table
    assert "SPAN" in (tmp_path / "results" / "scores.md").read_text()
    assert "<svg" in (tmp_path / "page" / "report.html").read_text()


def test_models_are_chosen_and_the_baseline_comes_with_them(show):
    assert "SPAN" not in show("--model_id", 0).stdout
    scored = show("--model_id", 0, "--score", "--edition", 2026)
    assert scored.returncode == 0, scored.stderr
    assert "SPAN" in scored.stdout


def test_what_failed_has_no_row_and_is_told(show, tmp_path):
    failed = record(status="stopped", reason="no output", model={"origin": "file"})
    store_record(tmp_path / "results" / "records.json", "file /a/net.py Net /a/net.pth", failed)
    result = show()
    assert result.returncode == 1
    assert "no output" in result.stdout


def test_page_has_the_score_and_what_failed_and_crops_of_what_was_kept(show, tmp_path, pairs):
    failed = record(status="stopped", reason="no <output>", model={"origin": "file", "name": "Broken"})
    store_record(tmp_path / "results" / "records.json", "file /a/net.py Net /a/net.pth", failed)
    (tmp_path / "results" / "images" / "126_SPAN" / "b.png").unlink()
    result = show("--data_dir", pairs, *VIEWS)
    assert "No crops of SPAN: restored images are missing; measure with --report to have them" in result.stdout
    page = (tmp_path / "page" / "report.html").read_text()
    assert "<td>Broken</td><td>no &lt;output&gt;</td>" in page
    assert "<h2>Score</h2>" in page
    assert page.count("SPAN of a.png") == 0
    assert page.count("EFDN of a.png") == 1


def other_data(folder, pairs):
    write_pairs(pairs, ["c"])
    return ("--report", "page"), "SPAN: measured on data (2 images), not on"


def no_results(folder, pairs):
    shutil.rmtree(folder / "results")
    return (), "records.json: holds no results"


def not_measured(folder, pairs):
    return ("--model_id", 0, 7), "--model_id 7: not in results/records.json"


def would_measure(folder, pairs):
    return ("--backend", "fast"), "--backend: is for measuring; --show takes models by --model_id alone"


@pytest.mark.parametrize("case", [other_data, no_results, not_measured, would_measure])
def test_what_cannot_be_shown_costs_one_line(show, tmp_path, pairs, case):
    words, part = case(tmp_path, pairs)
    result = show("--data_dir", pairs, *words)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last
