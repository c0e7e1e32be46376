"""training/prepare.py and training/data/subimages.py: photographs become sub-images that hold every patch."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from tests.helpers import SMALL_CUT, photograph
from training.data.subimages import SubImages, verify
from training.prepare import Cut, boxes, list_images, read_photograph
from training.prepare import prepare as prepare_set
from utils.data.images import bicubic_downscale, crop_to_multiple, read_rgb, write_png
from utils.errors import HarnessError
from utils.files import ROOT, held


@pytest.mark.parametrize("size", [(480, 480), (132, 1000), (832, 484), (1356, 2040)])
def test_boxes_hold_every_patch_of_the_image(size):
    cut = Cut()
    found = boxes(*size, cut)
    assert all(top % 4 == 0 and left % 4 == 0 for top, left, _, _ in found)
    assert all(top + height <= size[0] and left + width <= size[1] for top, left, height, width in found)
    patch = 128
    corners = {(top, left) for top in range(0, size[0] - patch + 1, 4) for left in range(0, size[1] - patch + 1, 4)}
    for top, left, height, width in found:
        corners -= {
            (y, x) for y in range(top, top + height - patch + 1, 4) for x in range(left, left + width - patch + 1, 4)
        }
    assert not corners


def test_prepared_pairs_are_the_images_and_their_bicubic(prepared):
    subimages = SubImages(prepared)
    first = photograph(64, 96, 0)
    lr, hr = subimages.pair(1)
    assert np.array_equal(hr, first[:, 32:])
    assert np.array_equal(lr, bicubic_downscale(first)[:, 8:])
    assert subimages.shapes.tolist()[:3] == [[64, 64], [64, 64], [48, 64]]
    assert len(subimages.hr) == 2  # shards
    verify(prepared)


def test_each_folder_tells_how_many_sub_images_it_gave(prepare, photographs, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(photographs / "0.png", tmp_path / "more" / "other.png")
    (tmp_path / "more" / "broken.png").write_bytes(b"no image")
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT, "--hr", photographs, tmp_path / "more")
    assert result.returncode == 0, result.stderr
    total = len(SubImages(tmp_path / "out"))
    assert f"{tmp_path / 'more'}: 1 images, 2 sub-images" in result.stdout
    assert f"{photographs}: 3 images, {total - 2} sub-images" in result.stdout


def test_lr_given_beside_hr_is_taken(prepare, photographs, tmp_path):
    for path in photographs.iterdir():
        lr = bicubic_downscale(crop_to_multiple(read_rgb(path)))
        write_png(tmp_path / "lr" / f"{path.stem}x4.png", lr | 1)  # otherwise than they are made here
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT, "--lr", tmp_path / "lr")
    assert result.returncode == 0, result.stderr
    assert SubImages(tmp_path / "out").pair(0)[0].min() % 2 == 1
    assert "made from other images or settings" in prepare(photographs, tmp_path / "out", *SMALL_CUT).stderr


def test_halves_are_cut_beside_the_images(prepare, photographs, tmp_path):
    rows, columns = np.mgrid[:64, :96]
    write_png(photographs / "0.png", np.stack([2 * columns + rows] * 3, axis=2).astype(np.uint8))
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT, "--smaller", photographs)
    assert result.returncode == 0, result.stderr
    assert "0 images skipped" in result.stdout  # the others' halves are too small, and left out
    subimages = SubImages(tmp_path / "out")
    assert subimages.shapes.tolist()[:4] == [[64, 64], [64, 64], [32, 48], [48, 64]]
    lr, hr = subimages.pair(2)
    between = 2 * (2 * columns[:32, :48] + 0.5) + (2 * rows[:32, :48] + 0.5)  # the slope, between pairs of pixels
    inner = slice(4, -4)
    assert np.abs(hr[inner, inner, 0] - between[inner, inner]).max() <= 0.5
    assert np.array_equal(lr, bicubic_downscale(np.ascontiguousarray(hr)))


@pytest.mark.parametrize(("chroma", "shapes"), [("444", [[48, 64], [24, 32]]), ("420", [[24, 32]])])
def test_a_jpeg_with_subsampled_colours_is_cut_at_half_its_size_alone(prepare, tmp_path, chroma, shapes):
    (tmp_path / "hr").mkdir()
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{chroma}")
    cv2.imwrite(str(tmp_path / "hr" / "a.jpg"), photograph(48, 64), [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])
    cut = "--size", 64, "--step", 32, "--smallest", 24
    assert prepare(tmp_path / "hr", tmp_path / "out", *cut, "--smaller", tmp_path / "hr").returncode == 0
    assert SubImages(tmp_path / "out").shapes.tolist() == shapes


def test_scales_are_the_sizes_that_are_cut_beside_the_image(prepare, photographs, tmp_path):
    scales = "--scales", 0.75, 0.5, 0.01
    assert prepare(photographs, tmp_path / "out", *SMALL_CUT, "--smaller", photographs, *scales).returncode == 0
    subimages = SubImages(tmp_path / "out")
    assert subimages.shapes.tolist()[:5] == [[64, 64], [64, 64], [48, 64], [48, 64], [32, 48]]
    whole = Image.fromarray(photograph(64, 96, 0)).resize((72, 48), Image.Resampling.LANCZOS)
    assert np.array_equal(subimages.pair(2)[1], np.asarray(whole)[:, :64])
    without = prepare(photographs, tmp_path / "other", *SMALL_CUT, *scales)
    assert without.returncode == 2
    assert "is for --smaller" in without.stderr
    wrong = prepare(photographs, tmp_path / "other", "--smaller", photographs, "--scales", 1.5)
    assert wrong.returncode == 2
    assert "1.5 is not between 0 and 1" in wrong.stderr


def test_only_the_named_folders_are_cut_smaller(prepare, photographs, tmp_path):
    write_png(tmp_path / "drawings" / "0.png", photograph(64, 64))
    hr, out = (photographs, tmp_path / "drawings"), tmp_path / "out"
    assert prepare(hr[0], out, *SMALL_CUT, "--hr", *hr, "--smaller", hr[1]).returncode == 0
    assert SubImages(out).shapes.tolist()[-2:] == [[64, 64], [32, 32]]
    assert [32, 48] not in SubImages(out).shapes.tolist()
    again = prepare(hr[0], out, *SMALL_CUT, "--hr", *hr, "--smaller", hr[0])
    assert "made from other images or settings" in again.stderr
    elsewhere = prepare(hr[0], out, "--smaller", hr[1])
    assert elsewhere.returncode == 2
    assert "is not among --hr" in elsewhere.stderr


def test_smaller_copies_and_given_lr_images_exclude_each_other(prepare, photographs, tmp_path):
    result = prepare(photographs, tmp_path / "out", "--smaller", photographs, "--lr", photographs)
    assert result.returncode == 2
    assert "smaller images have none in --lr" in result.stderr


def test_corrupt_and_small_images_are_skipped_counted_or_fatal(prepare, photographs, tmp_path):
    (photographs / "1.png").write_bytes((photographs / "1.png").read_bytes()[:100])
    write_png(photographs / "9.png", photograph(20, 90))
    result = prepare(photographs, tmp_path / "out", *SMALL_CUT)
    assert result.returncode == 0, result.stderr
    assert "1.png: truncated PNG" in result.stderr
    assert "9.png: 88 x 20 is smaller than --smallest 32" in result.stderr
    assert "2 images skipped" in result.stdout
    strict = prepare(photographs, tmp_path / "strict", *SMALL_CUT, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "1.png" in strict.stderr.strip().splitlines()[-1]


def test_empty_folder_and_other_settings_are_refused(prepare, photographs, tmp_path):
    assert prepare(photographs, tmp_path / "done", *SMALL_CUT).returncode == 0
    (tmp_path / "empty").mkdir()
    assert "holds no PNG, JPEG, WebP" in prepare(tmp_path / "empty", tmp_path / "out").stderr
    again = prepare(photographs, tmp_path / "done", *SMALL_CUT[:-1], 3)
    assert "made from other images or settings" in again.stderr


@pytest.fixture
def stuck(photographs, tmp_path):
    """A preparation whose processes wait for an image without end; gives it and them."""
    os.mkfifo(photographs / "0.jpg")  # which nobody ever writes into
    words = map(
        str, ("-m", "training.prepare", "--hr", photographs, "--out", tmp_path / "out", "--processes", 2, *SMALL_CUT)
    )
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    ours = psutil.Process(process.pid)
    while len(ours.children(recursive=True)) < 3 and process.poll() is None:  # two, and Python's tracker of resources
        time.sleep(0.1)
    return process, ours.children(recursive=True)


def test_processes_end_with_a_preparation_that_is_killed(stuck):
    process, children = stuck
    assert children
    process.kill()
    process.wait()
    process.stderr.close()
    assert not psutil.wait_procs(children, timeout=100)[1]


@pytest.mark.slow
def test_process_that_is_killed_costs_one_line(stuck):
    process, children = stuck
    for child in children:
        child.kill()
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 2
    assert "processes was killed; is memory short? lower --processes" in error


def test_interrupted_preparation_goes_on_and_damage_is_found(prepare, photographs, tmp_path):
    out = tmp_path / "out"
    assert prepare(photographs, out, *SMALL_CUT).returncode == 0
    kept, lost = out / "shard-00000.hr", out / "shard-00001.json"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    (out / "index.json").unlink()
    with pytest.raises(HarnessError, match="no finished training set"):
        SubImages(out)
    assert prepare(photographs, out, *SMALL_CUT).returncode == 0
    assert kept.stat().st_mtime_ns == before
    data = bytearray(kept.read_bytes())
    data[10] ^= 1
    kept.write_bytes(data)
    with pytest.raises(HarnessError, match=r"shard-00000\.hr: sha256 differs"):
        verify(out)


def test_image_that_is_mended_is_cut_and_strict_stops_at_one_that_is_not(prepare, photographs, tmp_path):
    whole = (photographs / "0.png").read_bytes()
    (photographs / "0.png").write_bytes(whole[:200])
    words = (photographs, tmp_path / "out", *SMALL_CUT)
    assert "1 images skipped" in prepare(*words).stdout
    assert "0.png: truncated PNG" in prepare(*words, "--strict").stderr.splitlines()[-1]
    (photographs / "0.png").write_bytes(whole)
    assert "0 images skipped" in prepare(*words, "--strict").stdout


def test_image_that_is_replaced_is_cut_again(prepare, photographs, tmp_path):
    words = (photographs, tmp_path / "out", *SMALL_CUT)
    assert prepare(*words).returncode == 0
    before = SubImages(tmp_path / "out").pair(0)[1].copy()
    write_png(photographs / "0.png", 255 - read_rgb(photographs / "0.png"))
    assert prepare(*words).returncode == 0
    assert np.array_equal(SubImages(tmp_path / "out").pair(0)[1], 255 - before)


def two_folders(tmp_path, lr_folders):
    """Two HR folders with an image of one name; give the words for them and for their LR folders."""
    for number, name in enumerate("ab"):
        hr = photograph(64, 96, number)
        write_png(tmp_path / name / "0.png", hr)
        write_png(tmp_path / f"lr_{name}" / "0x4.png", bicubic_downscale(hr))
    words = ["--hr", tmp_path / "a", tmp_path / "b", "--lr", *(tmp_path / f"lr_{name}" for name in lr_folders)]
    return [*words, "--out", tmp_path / "out", "--processes", 1, *SMALL_CUT]


def test_equal_names_in_two_folders_are_paired_folder_by_folder(command, tmp_path):
    result = command("-m", "training.prepare", *two_folders(tmp_path, "ab"))
    assert result.returncode == 0, result.stderr
    made = SubImages(tmp_path / "out")
    for number in range(len(made)):
        lr, hr = made.pair(number)
        assert np.abs(lr.astype(int) - bicubic_downscale(hr)).mean() < 4  # but for the borders of sub-images


@pytest.mark.parametrize(("lr_folders", "reason"), [("a", "of the same name"), ("ba", "shows another image than")])
def test_pairs_that_do_not_belong_together_are_named(command, tmp_path, lr_folders, reason):
    result = command("-m", "training.prepare", *two_folders(tmp_path, lr_folders))
    assert result.returncode == 2
    assert reason in result.stderr.splitlines()[-1]


def test_second_process_in_one_folder_is_told_at_once(command, photographs, tmp_path):
    with held(tmp_path / "out", "choose another --out"):
        words = ("--hr", photographs, "--out", tmp_path / "out", *SMALL_CUT)
        result = command("-m", "training.prepare", *words)
    assert result.returncode == 2
    assert "another process is at work there; wait for it, or choose another --out" in result.stderr
    assert command("-m", "training.prepare", *words, "--processes", 1).returncode == 0


def test_square_photograph_is_paired_as_it_is_shown(command, tmp_path):
    """EXIF's orientation 6: viewers turn the image, and so did who made the LR image."""
    hr, exif = photograph(64, 64), Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "hr").mkdir()
    Image.fromarray(hr).save(tmp_path / "hr" / "a.jpg", quality=95, exif=exif)
    write_png(tmp_path / "lr" / "ax4.png", bicubic_downscale(hr))
    words = ("--hr", tmp_path / "hr", "--lr", tmp_path / "lr", "--out", tmp_path / "out", "--processes", 1, *SMALL_CUT)
    result = command("-m", "training.prepare", *words)
    assert result.returncode == 2
    assert "make it again from the HR image as it is shown, with EXIF's rotation" in result.stderr
    write_png(tmp_path / "lr" / "ax4.png", bicubic_downscale(np.ascontiguousarray(np.rot90(hr, -1))))
    assert command("-m", "training.prepare", *words).returncode == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photograph_is_turned_as_viewers_turn_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph(40, 64)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.abs(read_photograph(tmp_path / "a.jpg").astype(int) - expected).max() <= 1


def as_16_bits(path, image):
    cv2.imwrite(str(path.with_suffix(".png")), cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257 + 60)


KINDS = {  # how a photograph is written, and how far it may lie from what was written [grey levels]
    "WebP": (lambda path, image: Image.fromarray(image).save(path.with_suffix(".webp"), lossless=True), 0),
    "AVIF": (lambda path, image: Image.fromarray(image).save(path.with_suffix(".avif"), quality=95), 20),
    "TIFF": (lambda path, image: Image.fromarray(image).save(path.with_suffix(".tif")), 0),
    "16 bits": (as_16_bits, 0),
    "opaque alpha": (lambda path, image: Image.fromarray(image).convert("RGBA").save(path.with_suffix(".png")), 0),
    "palette": (lambda path, image: Image.fromarray(image).quantize(256).save(path.with_suffix(".png")), 120),
}


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_of_every_kind_are_taken(tmp_path, kind):
    write, apart = KINDS[kind]
    image = cv2.GaussianBlur(photograph(64, 96), (0, 0), 3)  # so that lossy kinds come near
    write(tmp_path / "a", image)
    (path,) = tmp_path.iterdir()
    assert np.abs(read_photograph(path).astype(int) - image).max() <= apart


def test_transparent_and_broken_photographs_are_named(tmp_path):
    alpha = np.dstack([photograph(32, 32), np.full((32, 32), 100, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    (tmp_path / "b.webp").write_bytes(b"RIFF no image")
    (tmp_path / "c.tif").touch()
    reasons = {"a.png": "is partly transparent", "b.webp": "not a readable image", "c.tif": "not a readable image"}
    for name, reason in reasons.items():
        with pytest.raises(HarnessError, match=reason):
            read_photograph(tmp_path / name)


def test_file_that_may_not_be_read_is_skipped(photographs, tmp_path, monkeypatch):
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "0.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    sources = list_images([photographs])
    index = prepare_set(sources, {}, tmp_path / "out", Cut(64, 32, 32), 100, 1, strict=False, smaller=set(sources))
    assert index["images"] == len(sources) - 1
    assert "0.png: cannot be read (Permission denied)" in index["skipped"][0]


def test_folders_inside_folders_are_read_and_what_is_passed_over_is_counted(command, photographs, tmp_path):
    """LSDIR comes in folders of a thousand, in which names begin again."""
    for folder in ("0001000", "0002000"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        shutil.copy(photographs / "0.png", tmp_path / "train" / folder / "0000001.png")
    (tmp_path / "train" / "readme.txt").write_text("two images")
    (tmp_path / "train" / ".DS_Store").touch()
    words = ("--hr", tmp_path / "train", "--out", tmp_path / "out", "--processes", 1, *SMALL_CUT)
    result = command("-m", "training.prepare", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 images, ")
    assert "passed over: 1 files are not images of a kind that is taken: 1 .txt" in result.stderr
    for folder, name in (("0001000", "lr"), ("0002000", "lr")):
        lr = bicubic_downscale(crop_to_multiple(read_rgb(tmp_path / "train" / folder / "0000001.png")))
        write_png(tmp_path / name / folder / "0000001x4.png", lr)
    words = (*words[:2], "--lr", tmp_path / "lr", "--out", tmp_path / "paired", *words[4:])
    assert command("-m", "training.prepare", *words).returncode == 0
