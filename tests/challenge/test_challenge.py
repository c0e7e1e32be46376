"""utils/challenge/rules.py and utils/challenge/score_tables.py: the published rules and results."""

import math
from dataclasses import replace

import pytest

from tests.results.test_tables import record
from utils.challenge.rules import EDITIONS, get_edition, rank, score
from utils.challenge.score_tables import read_published, score_markdown, score_records
from utils.errors import HarnessError
from utils.files import ROOT
from utils.zoo.registry import read_registry

PUBLISHED = ROOT / "docs" / "ntire2026.csv"


@pytest.mark.parametrize("year", EDITIONS)
def test_baseline_scores_exp_2(year):
    edition = EDITIONS[year]
    result = score(edition.published, edition.published, edition)
    assert result.final == pytest.approx(7.3891, abs=5e-5)
    assert result.passed
    assert edition.baseline in {entry.name for entry in read_registry()}


@pytest.mark.parametrize("year", EDITIONS)
def test_weights_add_up_to_one(year):
    assert sum(EDITIONS[year].weights) == pytest.approx(1)


def test_final_score_is_what_paper_gives():
    edition = EDITIONS[2025]
    half = replace(edition.published, runtime_ms=edition.published.runtime_ms / 2)
    result = score(half, edition.published, edition)
    assert result.ratios == (0.5, 1, 1)
    assert result.final == pytest.approx(0.7 * math.e + 0.3 * math.e**2)


def test_threshold_is_compared_at_two_decimals():
    edition = EDITIONS[2025]
    for psnr, passed in ((26.8951, True), (26.8949, False)):
        result = score(replace(edition.published, psnr={"valid": psnr}), edition.published, edition)
        assert result.passed is passed
        assert result.margin["valid"] == pytest.approx(psnr - 26.90)


def published_scores():
    figures = read_published(PUBLISHED)
    return {name: score(values, figures["00_SPAN"], EDITIONS[2026]) for name, values in figures.items()}


def test_published_2026_results_rank_as_they_imply():
    order = [name for name in rank(published_scores()) if published_scores()[name].passed]
    assert order[:5] == ["22_SPANV2_ESR_C2", "01_PDS", "16_PKDSR_FINAL_CKPT", "18_DISP", "15_DSCF_Fused"]
    failed = {name for name, result in published_scores().items() if not result.passed}
    assert failed == {"009_RFDN_SPAN", "21_SAFMN"}
    assert published_scores()["00_SPAN"].final == pytest.approx(math.e**2)


def test_sub_track_ranks_by_its_own_score():
    order = rank(published_scores(), "params")
    assert order[:2] == ["04_ZenoSR", "11_VSCINet"]


def test_table_in_the_docs_is_what_the_code_gives():
    table = score_markdown(published_scores(), EDITIONS[2026])
    assert table in (ROOT / "docs" / "scores_2026.md").read_text()


def test_records_are_scored_against_the_baseline_of_the_same_run():
    fast = record(model={"name": "Fast", "missing_weights": None}, runtime={"runs": [[5.0, 10.0]]})
    baseline = record(model={"name": "EFDN", "missing_weights": None}, runtime={"runs": [[10.0, 20.0]]})
    for one in (fast, baseline):
        one["dataset"] = {"label": "x", "has_hr": True, "split": "valid"}
    scores = score_records([fast, baseline], EDITIONS[2025])
    assert scores["Fast"].ratios == (0.5, 1, 1)
    assert scores["Fast"].margin["valid"] == pytest.approx(0.35)
    with pytest.raises(HarnessError, match="EFDN, was not measured"):
        score_records([fast], EDITIONS[2025])
    elsewhere = baseline | {"environment": baseline["environment"] | {"gpu": "another"}}
    with pytest.raises(HarnessError, match="Fast: measured on another machine"):
        score_records([fast, elsewhere], EDITIONS[2025])
    other_images = baseline | {"dataset": baseline["dataset"] | {"sha256": "another"}}
    with pytest.raises(HarnessError, match="Fast: measured on another machine or data"):
        score_records([fast, other_images], EDITIONS[2025])


def test_model_without_quality_is_scored_but_has_no_place():
    baseline = record(model={"name": "EFDN", "missing_weights": "no checkpoint"})
    baseline["images"] = {"psnr": [None, None], "ssim": [None, None]}
    baseline["dataset"] = {"label": "x", "has_hr": True, "split": "valid"}
    table = score_markdown(score_records([baseline], EDITIONS[2025]), EDITIONS[2025])
    assert "| - | EFDN | valid none | 1.000 | 1.000 | 1.000 | 7.3891 | 7.3891 | 7.3891 | 7.3891 |" in table


def test_unknown_edition_lists_the_known_ones():
    with pytest.raises(HarnessError, match="known are 2025, 2026"):
        get_edition(1999)
