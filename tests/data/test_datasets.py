"""utils/data/datasets.py and utils/data/sample.py: layouts, labels, pairing."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import photograph, write_pairs
from utils.data.datasets import challenge_folders, open_dataset, open_folders, read_fitting_hr
from utils.data.images import bicubic_downscale, read_rgb, write_png
from utils.data.sample import PHOTOGRAPHS, default_data_dir, ensure_sample, make_sample
from utils.errors import HarnessError
from utils.evaluate.metrics import ssim

CHALLENGE = ("DIV2K_LSDIR_valid_HR", "DIV2K_LSDIR_valid_LR")


def test_plain_layout_lists_pairs_in_sorted_order(pairs):
    dataset = open_dataset(pairs)
    assert [pair.name for pair in dataset.pairs] == ["a.png", "b.png"]
    assert [pair.lr.name for pair in dataset.pairs] == ["ax4.png", "bx4.png"]
    assert dataset.has_hr
    assert dataset.label == "data (2 images)"


def test_challenge_layout_is_chosen_by_split(tmp_path):
    write_pairs(tmp_path, ["0801", "0000001"], layout=CHALLENGE)
    write_pairs(tmp_path, ["0901"], layout=tuple(name.replace("valid", "test") for name in CHALLENGE))
    assert [pair.name for pair in open_dataset(tmp_path).pairs] == ["0000001.png", "0801.png"]
    assert [pair.name for pair in open_dataset(tmp_path, "test").pairs] == ["0901.png"]


def test_a_part_of_the_challenge_is_labelled_as_a_part(tmp_path):
    write_pairs(tmp_path, ["0801"], layout=CHALLENGE)
    assert open_dataset(tmp_path).label == "DIV2K_LSDIR_valid (1 of the challenge's 200 images)"


def test_lr_alone_is_a_data_set_without_hr(tmp_path, pairs):
    (pairs / "HR").rename(tmp_path / "elsewhere")
    dataset = open_dataset(pairs)
    assert not dataset.has_hr
    assert [pair.name for pair in dataset.pairs] == ["a.png", "b.png"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_digest_is_that_of_what_sha256sum_prints(pairs, tmp_path):
    write_pairs(pairs, ["a", "a-1", "a1", "B"])
    words = "(cd HR; sha256sum *.png; cd ../LR; sha256sum *.png) | sha256sum"
    environment = {**os.environ, "LC_ALL": "C"}
    printed = subprocess.run(words, shell=True, cwd=pairs, env=environment, capture_output=True, text=True)
    assert open_dataset(pairs).sha256 == printed.stdout.split()[0]


def test_digest_follows_the_images_and_not_the_place(pairs, tmp_path):
    before = open_dataset(pairs).sha256
    assert open_dataset(pairs.rename(tmp_path / "elsewhere")).sha256 == before
    write_png(tmp_path / "elsewhere" / "HR" / "b.png", photograph(64, 96, 7))
    assert open_dataset(tmp_path / "elsewhere").sha256 != before


def test_image_that_cannot_be_read_is_named(pairs):
    dataset = open_dataset(pairs)
    (pairs / "LR" / "bx4.png").unlink()
    with pytest.raises(HarnessError, match=r"bx4\.png: cannot be read \(No such file"):
        dataset.sha256  # noqa: B018


def remove_lr(folder):
    (folder / "LR" / "ax4.png").unlink()
    return "a.png: has no LR image ax4.png"


def remove_hr(folder):
    (folder / "HR" / "b.png").unlink()
    return "bx4.png: has no HR image b.png"


def misname_lr(folder):
    (folder / "LR" / "ax4.png").rename(folder / "LR" / "other.png")
    return "a.png: has no LR image ax4.png"


def empty_lr(folder):
    for path in (folder / "LR").iterdir():
        path.unlink()
    return "holds no PNG"


def no_folders(folder):
    for name in ("HR", "LR"):
        (folder / name).rename(folder / f"other_{name}")
    return "holds no PNG images in a layout that is known here.*name the folders by --hr and --lr"


def twin_hr(folder):
    shutil.copy(folder / "HR" / "a.png", folder / "HR" / "a.PNG")
    return r"HR/a\.png: stands for the same image as a\.PNG; remove or rename one of them"


@pytest.mark.parametrize("damage", [remove_lr, remove_hr, misname_lr, empty_lr, no_folders, twin_hr])
def test_incomplete_folder_names_the_file(pairs, damage):
    reason = damage(pairs)
    with pytest.raises(HarnessError, match=reason):
        open_dataset(pairs)


def test_hidden_files_of_other_systems_are_no_images(pairs):
    for name in ("LR/._ax4.png", "HR/._a.png", "LR/.DS_Store", "HR/Thumbs.db"):
        (pairs / name).write_bytes(b"Mac OS X")
    assert [pair.name for pair in open_dataset(pairs).pairs] == ["a.png", "b.png"]


@pytest.mark.parametrize(("side", "large_enough"), [(4, False), (5, True)])
def test_image_without_room_for_the_window_of_ssim_is_named(pairs, side, large_enough):
    write_png(pairs / "HR" / "a.png", photograph(4 * side, 40, 1))
    lr = photograph(side, 10, 1)
    pair = open_dataset(pairs).pairs[0]
    if large_enough:
        hr = read_fitting_hr(pair, lr)
        assert ssim(hr, hr) == 1
    else:
        with pytest.raises(HarnessError, match=r"ax4\.png: 10 x 4 is too small for SSIM, which takes 5 x 5"):
            read_fitting_hr(pair, lr)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(HarnessError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")


def test_default_is_the_parent_folder_if_the_challenge_lies_there(tmp_path, monkeypatch):
    (tmp_path / "harness").mkdir()
    monkeypatch.chdir(tmp_path / "harness")
    assert default_data_dir().name == "sample"
    (tmp_path / CHALLENGE[1]).mkdir()
    assert default_data_dir().resolve() == tmp_path


def test_sample_is_six_photographs_labelled_as_a_sample(tmp_path):
    dataset = open_dataset(make_sample(tmp_path / "sample"))
    assert len(dataset.pairs) == len(PHOTOGRAPHS) == 6
    assert dataset.label.startswith("sample")
    assert "not DIV2K_LSDIR_valid" in dataset.label
    for pair in dataset.pairs:
        hr, lr = read_rgb(pair.hr), read_rgb(pair.lr)
        assert hr.shape == (4 * lr.shape[0], 4 * lr.shape[1], 3)
        assert abs(np.mean(hr) - np.mean(lr)) < 1  # shrunk, not shifted in brightness


def test_sample_is_made_once_and_again_if_it_was_not_finished(tmp_path):
    folder = make_sample(tmp_path / "sample")
    picture = challenge_folders(folder, "valid")[0] / "rocket.png"
    picture.unlink()
    ensure_sample(folder)
    assert not picture.exists()
    (folder / "dataset.json").unlink()
    ensure_sample(folder)
    assert picture.exists()


def test_broken_label_file_is_named(pairs):
    (pairs / "dataset.json").write_text(json.dumps(["no", "label"]))
    with pytest.raises(HarnessError, match=r"dataset\.json"):
        open_dataset(pairs)


# Public data sets as they are downloaded, and benchmarks as training packages keep them: HR and LR image of "baby".
KNOWN = {
    "challenge": ("DIV2K_LSDIR_valid_HR/baby.png", "DIV2K_LSDIR_valid_LR/babyx4.png"),
    "plain": ("HR/baby.png", "LR/babyx4.png"),
    "DIV2K": ("DIV2K_valid_HR/baby.png", "DIV2K_valid_LR_bicubic/X4/babyx4.png"),
    "Flickr2K": ("Flickr2K_HR/baby.png", "Flickr2K_LR_bicubic/X4/babyx4.png"),
    "EDSR": ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
    "BasicSR": ("GTmod12/baby.png", "LRbicx4/baby.png"),
    "LSDIR": ("HR/val/baby.png", "X4/val/babyx4.png"),
    "SelfExSR": ("image_SRF_4/baby_SRF_4_HR.png", "image_SRF_4/baby_SRF_4_LR.png"),
    "one folder": ("baby.png", "baby_x4.png"),
    "same names": ("HR/baby.png", "LR/baby.png"),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_layouts_of_public_sets_are_known(tmp_path, kind):
    hr_name, lr_name = KNOWN[kind]
    hr = photograph(64, 96)
    for base in ("baby", "bird_x2"):  # whose name has what looks like another scale
        write_png(tmp_path / hr_name.replace("baby", base), hr)
        write_png(tmp_path / lr_name.replace("baby", base), bicubic_downscale(hr))
    pairs = open_dataset(tmp_path).pairs
    assert [pair.hr.name for pair in pairs] == [Path(hr_name).name, Path(hr_name).name.replace("baby", "bird_x2")]
    assert [pair.lr.name for pair in pairs] == [Path(lr_name).name, Path(lr_name).name.replace("baby", "bird_x2")]


@pytest.mark.parametrize("place", ["HR", "."])
def test_hr_alone_gets_lr_images_and_says_so(tmp_path, place):
    hr = photograph(66, 97)
    write_png(tmp_path / place / "a.png", hr)
    dataset = open_dataset(tmp_path)
    assert dataset.notes == ("LR images are made from the HR images, by MATLAB's bicubic",)
    (pair,) = dataset.pairs
    assert np.array_equal(pair.read_lr(), bicubic_downscale(hr[:64, :96]))
    assert len(dataset.sha256) == 64


def test_other_pictures_beside_the_folders_are_not_the_data(tmp_path):
    write_png(tmp_path / "preview.png", photograph(64, 64))
    write_png(tmp_path / "HR" / "a.png", photograph(64, 64))
    assert [pair.name for pair in open_dataset(tmp_path).pairs] == ["a.png"]


def test_folders_may_lie_anywhere_and_names_are_paired_by_what_they_share(tmp_path):
    for name in ("a", "b"):
        hr = photograph(64, 96)
        write_png(tmp_path / "originals" / f"{name}_HR.png", hr)
        write_png(tmp_path / "small" / f"{name}_LRx4.png", bicubic_downscale(hr))
    pairs = open_folders(tmp_path / "originals", tmp_path / "small").pairs
    assert [(pair.hr.name, pair.lr.name) for pair in pairs] == [(f"{n}_HR.png", f"{n}_LRx4.png") for n in "ab"]
    assert open_folders(tmp_path / "originals", None).pairs[0].lr is None
    assert open_folders(None, tmp_path / "small").pairs[0].hr is None
    write_png(tmp_path / "small" / "a-x4.png", photograph(16, 24))
    with pytest.raises(HarnessError, match=r"a_LRx4\.png: stands for the same image as a-x4\.png"):
        open_folders(tmp_path / "originals", tmp_path / "small")


def test_hr_image_that_is_a_jpeg_is_told(pairs):
    data = cv2.imencode(".jpg", photograph(64, 96))[1].tobytes()
    (pairs / "HR" / "a.png").write_bytes(data)
    assert open_dataset(pairs).notes == (
        "1 of 2 HR images are JPEGs whatever their names say; their artefacts count as detail",
    )
