"""Who a model is, and where its code runs: stated by its origin, never guessed from a name, a number or a path."""

import os
import re
import shutil

import pytest

from tests.helpers import QUICK, model_words, record, stored, write_model, write_table
from utils.errors import HarnessError
from utils.record import read_results, with_distinct_names
from utils.results.tables import text_table
from utils.zoo.registry import Origin, entry_from_file, find_entry, find_variant, read_registry, variants_of

NOTES = "open({path!r}, 'a').write(f'{{os.getpid()}}\\n')"  # what a model file does when it is imported


@pytest.fixture
def noting(tmp_path):
    """Writes a model file that notes each process that runs it; gives the words for it and a list of those."""

    def write(name="team42_Net.py"):
        path = tmp_path / "ran"
        words = model_words(write_model(tmp_path / "upload", name, top=NOTES.format(path=str(path))))
        return words, lambda: path.read_text().split() if path.exists() else []

    return write


@pytest.mark.parametrize(
    "more",
    [(), ("--score",), ("--register", 4242), ("--report", "page"), ("--isolated",), ("--save_images",)],
    ids=lambda words: " ".join(map(str, words)) or "alone",
)
def test_code_of_a_file_runs_in_no_process_but_its_own(command, noting, pairs, tmp_path, monkeypatch, more):
    monkeypatch.setattr("utils.measuring.register", lambda entry: None)
    words, ran_in = noting()
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert ran_in()
    assert str(os.getpid()) not in ran_in()
    assert stored(tmp_path / "results")["Net"]["environment"]["isolation"] in ("process", "sandbox")


@pytest.mark.parametrize("more", [("--backend", "auto"), ("--backend", "fast"), ("--precision", "bfloat16")])
def test_forms_of_a_file_are_refused_before_it_runs(command, noting, pairs, tmp_path, more):
    words, ran_in = noting("team07_X.py")  # the number of a model that has forms
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, *more, cwd=tmp_path)
    assert result.returncode == 2
    assert "--backend, --precision: choose among the registry's variants of a model" in result.stderr
    assert not ran_in()


@pytest.mark.parametrize("more", [("--backend", "auto"), ("--precision", "float16")])
def test_forms_of_a_repository_are_refused_before_it_runs(command, pairs, tmp_path, more):
    ran = tmp_path / "ran"
    (tmp_path / "test_demo.py").write_text(
        f"open({str(ran)!r}, 'w')\ndef select_model(args, device):\n    if args.model_id == 7: pass\n"
    )
    result = command("eval.py", *QUICK, "--data_dir", pairs, "--repository", tmp_path, *more, cwd=tmp_path)
    assert result.returncode == 2
    assert "leave them out with --model_file and --repository" in result.stderr
    assert not ran.exists()


def test_nothing_of_a_file_runs_where_its_row_is_shown(command, noting, pairs, tmp_path):
    words, ran_in = noting()
    measured = command("eval.py", *QUICK, "--data_dir", pairs, *words, "--save_images", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    before = ran_in()
    shown = command("eval.py", "--show", "--report", "page", "--data_dir", pairs, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert ran_in() == before


def test_file_is_not_its_own_baseline(command, noting, pairs, tmp_path):
    words, _ = noting("team42_EFDN.py")
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, "--score", "--edition", 2025, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    models = [one.model for one in read_results(tmp_path / "results" / "records.json").values()]
    assert sorted((one.origin, one.name) for one in models) == [("file", "EFDN"), ("registry", "EFDN")]
    assert re.search(r" 1  EFDN +valid \+0\.0000 dB +1\.000 ", result.stdout)
    assert "EFDN (file)  " in result.stdout


@pytest.mark.parametrize("file", ["team07_X.py", "team00_EFDN.py"])
def test_number_of_a_file_opens_no_variants(tmp_path, file):
    path, weights = write_model(tmp_path, file)
    entry = entry_from_file(path, "Net", [], weights)
    assert variants_of(entry, read_registry()) == [entry]
    with pytest.raises(HarnessError, match="has no such variant"):
        find_variant(entry, read_registry(), "fast")


def test_variant_is_compared_with_no_submission_of_its_number():
    plain = record(model={"id": 7, "name": "X", "origin": "file"})
    fast = record(model={"id": 207, "name": "NanoSR_fast", "variant_of": 7})
    assert "against it" not in text_table([plain, fast])


def test_rows_of_files_and_classes_of_one_name_stand_beside_each_other(command, pairs, tmp_path):
    """Two folders, one file name; and two classes of one file, one of which is called like the other file's."""
    for folder in ("a", "b"):
        write_model(tmp_path / folder, top=f"# of {folder}")
    source = (tmp_path / "a" / "team42_Net.py").read_text()
    (tmp_path / "a" / "team42_Net.py").write_text(source + "\nclass Other(Net):\n    pass\n")
    for folder, name in (("a", "Net"), ("b", "Net"), ("a", "Other")):
        file = tmp_path / folder / "team42_Net.py"
        if name != "Net":
            write_table(file, name)
        words = model_words((file, tmp_path / folder / "w.pth"))
        result = command("eval.py", *QUICK, "--data_dir", pairs, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    models = [one.model for one in read_results(tmp_path / "results" / "records.json").values()]
    assert len({one.slug for one in models}) == len(models) == 3
    assert {one.name for one in models} == {"Net"}
    assert len(list((tmp_path / "results" / "logs").glob("42_Net-????????.log"))) == 3
    shown = command("eval.py", "--show", cwd=tmp_path).stdout
    assert shown.count("Net (42_Net-") >= 3


def test_repositories_of_two_years_share_a_folder_of_results(command, pairs, tmp_path):
    for year in ("NTIRE2025_ESR", "NTIRE2026_ESR"):
        write_model(tmp_path / year / "models", "net.py")
        (tmp_path / year / "models" / "__init__.py").touch()
        (tmp_path / year / "test_demo.py").write_text(
            "import torch\n"
            "def select_model(args, device):\n"
            "    model_id = args.model_id\n"
            "    if model_id in (3, 4):\n"
            "        from models.net import Net\n"
            "        name, data_range = f'{model_id:02}_Same', 1.0\n"
            "        model = Net()\n"
            "        model.load_state_dict(torch.load('models/w.pth'), strict=True)\n"
            "    return model.eval().to(device), name, data_range, None\n"
        )
        result = command("eval.py", *QUICK, "--data_dir", pairs, "--repository", tmp_path / year, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "Same (id 3)  " in result.stdout
        assert "Same (id 4)  " in result.stdout
    records = read_results(tmp_path / "results" / "records.json")
    assert sorted(records) == [
        f"repository {tmp_path / year} {model_id}" for year in ("NTIRE2025_ESR", "NTIRE2026_ESR") for model_id in (3, 4)
    ]
    assert command("eval.py", "--show", cwd=tmp_path).returncode == 0


def test_weights_given_to_a_registered_model_have_a_row_of_their_own(command, pairs, tmp_path):
    shutil.copy(find_entry(126, read_registry()).checkpoint_path, tmp_path / "other.pth")
    for more in ((), ("--checkpoint", tmp_path / "other.pth")):
        result = command("eval.py", *QUICK, "--data_dir", pairs, "--model_id", 126, *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    keys = list(read_results(tmp_path / "results" / "records.json"))
    assert keys == ["registry 126", f"registry 126 {tmp_path / 'other.pth'}"]
    shown = command("eval.py", "--show", cwd=tmp_path).stdout
    assert "SPAN  " in shown
    assert "SPAN (other.pth)  " in shown


def test_names_are_told_apart_by_what_differs():
    own = record(model={"id": 0, "name": "EFDN", "slug": "00_EFDN"})
    file = record(model={"name": "EFDN", "origin": "file"})
    entries = [record(model={"id": id_, "name": "TSR", "origin": "repository", "slug": f"{id_:02}"}) for id_ in (5, 50)]
    alone = record(model={"name": "Net", "origin": "file"})
    shown = with_distinct_names([file, own, *entries, alone])
    names = [one.model.name for one in shown]
    assert names == ["EFDN (file)", "EFDN", "TSR (id 5)", "TSR (id 50)", "Net"]
    assert [one.model.name for one in (own, file)] == ["EFDN", "EFDN"]  # the records stay as they are


def test_every_way_in_states_an_origin(tmp_path):
    path, weights = write_model(tmp_path)
    assert entry_from_file(path, "Net", [], weights).origin == Origin.FILE
    assert {entry.origin for entry in read_registry()} == {Origin.REGISTRY}
