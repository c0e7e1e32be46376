"""utils/results/report.py and utils/results/plots.py: what the page shows, and that a real browser shows it."""

import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from tests.helpers import photograph, record
from utils.data.datasets import open_dataset
from utils.data.images import read_rgb, write_png
from utils.protocol import SCALE
from utils.results.plots import pareto_front
from utils.results.report import SIDE, crop_rows, place_of_difference, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def model_record(id_, name, psnr, dataset):
    return record(
        model={"id": id_, "name": name, "slug": f"{id_:02}_{name}"},
        dataset={"label": "two images", "sha256": dataset.sha256},
        images={"lr_pixels": [384, 384], "psnr": psnr},
    )


def good_and_bad(dataset):
    return [model_record(1, "Good", [26.0, 28.0], dataset), model_record(2, "<Bad> $x_1$", [26.0, 25.0], dataset)]


@pytest.fixture
def restored(pairs, tmp_path):
    """Restored images of two models: the second one spoils a corner of b."""
    for pair in open_dataset(pairs).pairs:
        lr = read_rgb(pair.lr)
        sr = cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_LINEAR)
        write_png(tmp_path / "images" / "01_Good" / pair.name, sr)
        if pair.name == "b.png":
            sr[-8:, -8:] = 0
        write_png(tmp_path / "images" / "02_<Bad> $x_1$" / pair.name, sr)
    return tmp_path / "images"


@pytest.fixture
def page(restored, pairs, tmp_path):
    records = good_and_bad(open_dataset(pairs))
    write_report(tmp_path / "report" / "report.html", records, open_dataset(pairs), restored)
    return tmp_path / "report" / "report.html"


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 30), (2, 31), (3, 30.5)], [0, 1]),
        ([(2, 30), (1, 30)], [1]),
        ([(1, 30), (1, 30)], [0, 1]),
        ([(5, 29)], [0]),
    ],
)
def test_front_holds_what_no_other_point_beats(points, front):
    assert pareto_front(points) == front


@pytest.mark.parametrize(("top", "left"), [(0, 60), (40, 84), (204, 304)])
def test_window_lies_where_errors_differ(top, left):
    hr = photograph(304, 404)
    good = hr.copy()
    good[:, :50] = 0  # an error that both make says nothing
    bad = good.copy()
    bad[top : top + 40, left : left + 40] = 255 - hr[top : top + 40, left : left + 40]
    found_top, found_left = place_of_difference(hr, [good, bad])
    assert found_top <= top <= found_top + SIDE - 40
    assert found_left <= left <= found_left + SIDE - 40
    assert found_top + SIDE <= 304
    assert found_left + SIDE <= 404


def test_crops_begin_with_the_image_that_differs_most(restored, pairs):
    records = good_and_bad(open_dataset(pairs))
    rows = crop_rows(records, open_dataset(pairs), restored)
    assert [row.name for row in rows] == ["b.png", "a.png"]
    assert rows[0].spread > rows[1].spread == 0
    assert [panel.title for panel in rows[0].panels] == ["LR", "bicubic", "Good", "<Bad> $x_1$", "original"]
    assert np.argmin([panel.psnr for panel in rows[0].panels[1:-1]]) == 2


def test_page_is_self_contained_and_names_are_text(page):
    text = page.read_text()
    assert "<Bad>" not in text
    assert "&lt;Bad&gt; $x_1$" in text
    links = re.findall(r"(?:src|href)=\"([^\"#][^\"]{0,30})", text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert len(re.findall("<h2>", text)) == 5


def test_models_without_quality_still_get_a_page(pairs, tmp_path):
    dataset = open_dataset(pairs)
    plain = model_record(1, "Net", [None, None], dataset)
    plain.images.ssim = [None, None]
    write_report(tmp_path / "report.html", [plain], dataset, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Runtime of an image" in text
    assert "Quality against cost" not in text


@pytest.fixture
def browse(tmp_path):
    """Opens a page in a headless browser that reaches no network; gives its DOM after loading and its log."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")

    def open_page(path):
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return result.stdout, result.stderr

    return open_page


def test_browser_shows_every_picture_without_a_complaint(browse, page):
    dom, log = browse(page)
    assert "10 of 10 pictures shown" in dom
    assert "CONSOLE" not in log, log


def test_browser_tells_of_a_broken_picture_and_of_an_error(browse, page):
    broken = page.with_name("broken.html")
    text = page.read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAAA", 1)
    broken.write_text(text.replace("<script>", "<script>console.error('complaint');"))
    dom, log = browse(broken)
    assert "9 of 10 pictures shown" in dom
    assert "CONSOLE" in log
