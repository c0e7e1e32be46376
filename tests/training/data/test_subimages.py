"""training/data/subimages.py: what is written is what is read, and a shard is there as a whole or not at all."""

import numpy as np
import pytest

from tests.helpers import photograph
from training.data.subimages import SubImages, verify, write_index, write_shard
from utils.errors import HarnessError

PAIRS = [(photograph(h // 4, w // 4, h), photograph(h, w, w)) for h, w in ((32, 48), (64, 64), (16, 80))]


def test_what_is_read_is_what_was_written(tmp_path):
    shards = [write_shard(tmp_path / name, {}, pairs) for name, pairs in (("a", PAIRS[:2]), ("b", PAIRS[2:]))]
    write_index(tmp_path, {}, shards)
    verify(tmp_path)
    subimages = SubImages(tmp_path)
    assert subimages.nbytes == sum(image.nbytes for pair in PAIRS for image in pair) == sum(s["bytes"] for s in shards)
    for number, pair in enumerate(PAIRS):
        assert all(np.array_equal(read, written) for read, written in zip(subimages.pair(number), pair, strict=True))


def test_a_shard_that_is_there_is_not_made_again_and_not_for_others(tmp_path):
    made = write_shard(tmp_path / "a", {"cut": 3, "of": ["x.png"]}, PAIRS, ["y.png: too small"])
    asked = []
    again = write_shard(tmp_path / "a", {"cut": 3, "of": ["x.png"]}, map(asked.append, PAIRS))
    assert again["sha256"] == made["sha256"]
    assert again["skipped"] == ["y.png: too small"]
    assert not asked
    with pytest.raises(HarnessError, match=r"a\.json: made from other images or settings"):
        write_shard(tmp_path / "a", {"cut": 4, "of": ["x.png"]}, PAIRS)


def test_an_image_that_fails_leaves_no_shard(tmp_path):
    def pairs():
        yield PAIRS[0]
        raise HarnessError("the second is broken")

    with pytest.raises(HarnessError, match="the second is broken"):
        write_shard(tmp_path / "a", {}, pairs())
    assert not (tmp_path / "a.json").exists()
    assert not (tmp_path / "a.hr").exists()
    assert write_shard(tmp_path / "a", {}, PAIRS)["shapes"] == [(32, 48), (64, 64), (16, 80)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="file/a: cannot be written"):
        write_shard(tmp_path / "file" / "a", {}, PAIRS)


def test_a_shard_without_images_is_passed_over(tmp_path):
    shards = [write_shard(tmp_path / "a", {}, [], ["x.png: too small"]), write_shard(tmp_path / "b", {}, PAIRS)]
    write_index(tmp_path, {}, shards)
    assert np.array_equal(SubImages(tmp_path).pair(2)[1], PAIRS[2][1])


@pytest.mark.parametrize("lost", ["a.hr", "a.lr", "a.json"])
def test_a_lost_file_is_named_and_made_again(tmp_path, lost):
    write_index(tmp_path, {}, [write_shard(tmp_path / "a", {}, PAIRS)])
    (tmp_path / lost).unlink()
    with pytest.raises(HarnessError, match=rf"{lost}: .*run training\.prepare again"):
        SubImages(tmp_path)
    write_index(tmp_path, {}, [write_shard(tmp_path / "a", {}, PAIRS)])
    assert len(SubImages(tmp_path)) == len(PAIRS)


def test_no_index_is_left_while_a_shard_is_made_again(tmp_path):
    write_index(tmp_path, {}, [write_shard(tmp_path / "a", {}, PAIRS, contents="before")])

    def interrupted():
        yield PAIRS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a", {}, interrupted(), contents="after")
    with pytest.raises(HarnessError, match="no finished training set here"):
        SubImages(tmp_path)
