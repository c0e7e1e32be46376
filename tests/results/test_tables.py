"""utils/results/tables.py: the factsheet's columns, and that no cell pretends."""

import math
import re

import pytest

from tests.helpers import audit_record, computed, record
from utils.results.tables import COLUMNS, factsheet_row, latex, latex_table, markdown_table, text_table


def test_cells_follow_the_factsheet():
    assert COLUMNS[:4] == ("Model", "Val PSNR", "Val SSIM", "Val Time [ms]")
    assert factsheet_row(record()) == ["Net_1", "27.25", "0.75", "27.50", "0.551", "36.02", "88.08", "965.48", "28"]


def test_cpu_figures_are_marked():
    row = factsheet_row(record(environment={"device": "cpu"}))
    assert row[3] == "27.50 (CPU)"
    assert row[7] == "965.48 (CPU)"


def test_missing_weights_give_dashes_and_the_reason():
    images = {"name": ["a"], "lr_pixels": [4], "psnr": [None], "ssim": [None], "tile": [None], "nan": [False]}
    missing = record(images=images, model={"name": "Net_1", "missing_weights": "x.pth: no checkpoint"})
    assert factsheet_row(missing)[1:3] == ["-", "-"]
    assert "Net_1: no quality, x.pth: no checkpoint" in text_table([missing])


def test_figures_on_luma_stand_beside_the_protocols():
    on_luma = record(images={"luma_psnr": [28.0, 30.5], "luma_ssim": [0.75, 0.85]})
    head, _, *rows = text_table([on_luma, record()]).splitlines()
    assert re.split("  +", head)[:5] == ["Model", "Val PSNR", "Val SSIM", "Val PSNR-Y", "Val SSIM-Y"]
    assert [row.split()[1:5] for row in rows[:2]] == [["27.25", "0.75", "29.25", "0.8000"], ["27.25", "0.75", "-", "-"]]
    assert "Val PSNR-Y" not in text_table([record()])


def test_note_says_what_psnr_is_of():
    assert "PSNR, SSIM: on RGB, as the challenge scores" in text_table([record()]).splitlines()
    on_luma = record(images={"luma_psnr": [28.0, 30.5], "luma_ssim": [0.75, 0.85]})
    assert "PSNR-Y, SSIM-Y: on luma (BT.601)" in text_table([on_luma])


def test_incomplete_record_shows_its_reason():
    text = text_table([record(status="stopped", reason="b.png: truncated PNG", complexity=None)])
    assert "incomplete: b.png: truncated PNG" in text


def test_identical_images_give_inf():
    assert factsheet_row(record(images={"psnr": [math.inf, 30.0]}))[1] == "inf"


def test_nan_is_noted():
    text = text_table([record(images={"nan": [True, False]})])
    assert "Net_1: NaN in the output of 1 of 2 images, where it counts as black" in text
    assert "NaN" not in text_table([record(images={"nan": [False, False]})])


def test_data_and_methods_are_named_once_each():
    digest = "0123456789abcdef" * 4
    records = [record(dataset={"sha256": digest}) for _ in range(2)]
    records[1].runtime.busy_cpu = True
    method = "forward pass alone, every image once per run, the first unwarmed one included, plain mean of all"
    lines = text_table(records).splitlines()
    assert lines.count("Data: sample (2 images), sha256 0123456789ab") == 1
    assert [line for line in lines if line.startswith("Val Time")] == [
        f"Val Time: {method}; average of 2 runs",
        f"Val Time: {method}; throughput mode: images were read and scored on the same CPU meanwhile; "
        "average of 2 runs",
    ]


def test_variant_is_compared_with_its_plain_form():
    steady = {"lr_width": 4, "lr_height": 4, "warmup": 1, "repeats": 1, "p10_ms": 1.0, "p90_ms": 1.0}
    plain, fast = (
        record(
            model={"id": id_, "name": name, "missing_weights": None, "variant_of": of},
            images={"psnr": psnr},
            runtime={"steady": steady | {"median_ms": median}},
        )
        for id_, name, of, psnr, median in ((7, "Net", None, [26.0, 28.0], 30.0), (208, "Half", 7, [26.0, 27.5], 12.0))
    )
    line = "Half: the function of Net, against it: PSNR -0.2500 dB, 2.50 times as fast (steady)"
    assert line in text_table([plain, fast]).splitlines()
    assert "against it" not in text_table([fast])


def test_text_table_is_aligned_and_names_data_and_machine():
    lines = text_table([record(), record(model={"name": "Another_net", "missing_weights": None})]).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert "Data: sample (2 images), sha256 0123456789ab" in lines
    assert "Machine: RTX, torch 2.13.0, 2026-01-02" in lines


def test_markdown_has_a_cell_per_column():
    lines = markdown_table([record()]).splitlines()
    assert [line.count("|") for line in lines[:3]] == [len(COLUMNS) + 1] * 3


def test_latex_shows_every_character():
    assert latex("50% of {a_b} & #1 ~ $x^2\\y") == (
        r"50\% of \{a\_b\} \& \#1 \textasciitilde{} \$x\textasciicircum{}2\textbackslash{}y"
    )


def test_latex_escapes_names_and_closes_what_it_opens():
    table = latex_table([record()])
    assert r"Net\_1 & 27.25 & 0.75 & 27.50 & 0.551 & 36.02 & 88.08 & 965.48 & 28 \\" in table
    for environment in ("table", "tabular"):
        assert table.count(rf"\begin{{{environment}}}") == table.count(rf"\end{{{environment}}}") == 1


def test_tiles_say_whether_they_show():
    tiled = {"images": {"tile": [512, None]}}
    near, far = (record(**tiled, tiles={"overlap": 32, "reach": reach}) for reach in (27, 64))
    assert "runtime is the sum over tiles, without a seam" in text_table([near])
    assert "with seams: a pixel depends on others up to 64 LR pixels away or more" in text_table([far])


COMPUTED = {
    "the same": ({}, None),
    "FLOPs": ({"macs": 39_000_000_000}, "FLOPs 39.00 G (counted: 36.02)"),
    "on a photograph": ({"photograph_macs": 39_000_000_000}, "FLOPs 39.00 G (counted: 36.02)"),
    "sums of products": ({"summed_products": 2_000_000_000}, "FLOPs 38.02 G (counted: 36.02)"),
    "numbers": ({"values": 600_000}, "Params 0.600 M (counted: 0.551)"),
    "less": ({"macs": 30_000_000_000, "photograph_macs": 30_000_000_000}, None),
    "functions": (
        {"convs": 30, "activations": 100_000_000},
        "Acts 100.00 M (counted: 88.08), Conv 30 (counted: 28)",
    ),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_note_says_what_the_counters_leave_out(kind):
    changes, expected = COMPUTED[kind]
    text = text_table([record(complexity=computed(**changes))])
    line = f"Net_1: as computed, by torch's dispatcher: {expected}"
    assert line in text.splitlines() if expected else "as computed" not in text


def test_busy_machine_is_told_in_the_row():
    busy = audit_record(busy={"share": 0.4, "others_cores": 1.9})
    lines = text_table([record(audit=busy)]).splitlines()
    assert "Net_1: audit: clean so far, times not checked (none)" in lines
    told = "Net_1: the machine was busy, other processes used 1.9 cores; measure again on an idle one"
    assert told in lines
    assert told in text_table([record(runtime={"others_cores": 1.9})]).splitlines()
    assert "busy" not in text_table([record(runtime={"others_cores": 0.1})])


def test_time_that_the_host_took_is_shown_and_the_reported_one_told():
    text = text_table([record(runtime={"host_runs": [[40.0, 50.0], [40.0, 50.0]]})])
    assert "45.00" in text.splitlines()[2]
    assert "Net_1: its own clock reported 27.50 ms; the time shown is the host's, transfers subtracted" in text
