"""utils/record.py: nothing that was measured gets lost."""

import json
import math
import multiprocessing
import os

import pytest

from tests import helpers
from tests.helpers import on_a_full_disk
from utils.errors import HarnessError
from utils.files import read_json, write_json
from utils.record import read_results, store_record


def record(value, status="complete"):
    return helpers.record(status=status, images={"psnr": [value, 0.0]})


def test_records_of_several_models_stay_side_by_side(tmp_path):
    path = tmp_path / "new" / "results.json"
    store_record(path, "A", record(1))
    store_record(path, "B", record(math.inf))
    assert read_results(path) == {"A": record(1), "B": record(math.inf)}
    json.loads(path.read_text(), parse_constant=pytest.fail)  # plain JSON: no bare Infinity


def test_an_incomplete_record_never_replaces_a_complete_one(tmp_path):
    path = tmp_path / "results.json"
    store_record(path, "A", record(1))
    store_record(path, "A", record(2, "stopped"))
    assert read_results(path) == {"A": record(1)}
    assert json.loads(path.read_text())["incomplete"]["A"]["images"]["psnr"] == [2, 0]
    store_record(path, "A", record(3))
    assert read_results(path) == {"A": record(3)}
    assert json.loads(path.read_text())["incomplete"] == {}


def store_many(path, name):
    for value in range(20):
        store_record(path, name, record(value))


@pytest.mark.slow
def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=store_many, args=(path, name)) for name in "ABC"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert read_results(path) == {name: record(19) for name in "ABC"}


def test_lock_that_a_killed_writer_left_stops_nobody_and_no_partial_file_stays(tmp_path):
    for name in (".results.json.lock", ".results.json.1.partial"):
        (tmp_path / name).touch()
    store_record(tmp_path / "results.json", "A", record(1))
    assert {path.name for path in tmp_path.iterdir()} <= {"results.json", ".results.json.lock"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 99, "models": {}, "incomplete": {}}', "another version"),
        ("{}", "another version"),
        ("[]", "not a results file"),
        ('{"schema": 2, "mod', "not valid JSON"),
        ('{"schema": 4, "models": {"A": {"status": "complete"}}}', "not a results file .*missing required field"),
    ],
)
def test_foreign_results_file_is_refused_and_left_as_it_is(tmp_path, content, reason):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(HarnessError, match=reason):
        store_record(path, "A", record(1))
    assert path.read_text() == content


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="cannot be written"):
        write_json(tmp_path / "file" / "results.json", {})


def test_full_disk_keeps_the_old_file_and_no_part_of_the_new(tmp_path, monkeypatch):
    write_json(tmp_path / "results.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", on_a_full_disk)
    with pytest.raises(HarnessError, match=r"results\.json: cannot be written .*No space left.*make room"):
        write_json(tmp_path / "results.json", {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert read_json(tmp_path / "results.json") == {"old": 1}
