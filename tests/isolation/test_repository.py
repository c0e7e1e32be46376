"""utils/isolation/repository.py and eval.py --repository: an organizers' checkout, measured unedited."""

import pytest

from tests.helpers import QUICK, photograph, stored, write_pairs
from utils.data.images import write_png
from utils.errors import HarnessError
from utils.isolation.repository import repository_entries

NAMES = {
    0: "Baseline", 1: "Range255", 2: "Nested", 3: "Lenient", 4: "model_4", 5: "Repa", 6: "OwnLoader", 7: "Cuda",
    8: "Pickled", 9: "Needy", 10: "NoWeights", 11: "Half", 12: "Operator",
}  # fmt: skip
REASONS = {
    "model_4": "select_model gives no model for id 4",
    "Pickled": "add --trust_checkpoint",
    "Needy": "imports einops_of_nowhere, which is not installed; install einops_of",
    "NoWeights": "team10_NoWeights.pth: no such checkpoint",
    "Operator": "fails on an LR image of",
}


@pytest.fixture
def run(command, repository, tmp_path):
    data = write_pairs(tmp_path / "data", ["a"], size=(64, 96))

    def measure(*arguments):
        return command("eval.py", *QUICK, "--data_dir", data, "--repository", repository, *arguments, cwd=tmp_path)

    return measure


def records(tmp_path, kind="models"):
    return stored(tmp_path / "results", kind)


def test_entries_are_read_from_the_source_without_running_it(repository):
    (repository / "models" / "team01_Plain.py").write_text("raise SystemExit")
    assert {entry.id: entry.name for entry in repository_entries(repository)} == NAMES


def test_folder_that_is_no_repository_is_named(tmp_path):
    with pytest.raises(HarnessError, match=r"test_demo\.py: cannot be read"):
        repository_entries(tmp_path)
    (tmp_path / "test_demo.py").write_text("print('hello')")
    with pytest.raises(HarnessError, match="has no function select_model"):
        repository_entries(tmp_path)
    (tmp_path / "test_demo.py").write_text("def select_model(args, device):\n    return MODELS[args.model_id]\n")
    with pytest.raises(HarnessError, match="compares model_id with no number"):
        repository_entries(tmp_path)


def test_every_habit_gives_a_row_or_a_reason(run, tmp_path):
    result = run()
    assert result.returncode == 1, result.stderr
    complete, incomplete = records(tmp_path), records(tmp_path, "incomplete")
    for name, reason in REASONS.items():
        assert reason in incomplete[name]["reason"], name
        assert f"{name}  " in result.stdout.partition("No row")[2]
    assert complete.keys() | incomplete.keys() == set(NAMES.values())
    assert complete.keys() >= set(NAMES.values()) - REASONS.keys() - {"Half"}
    quality = {name: record["images"]["psnr"][0] for name, record in complete.items()}
    for name in ("Nested", "Lenient", "Repa", "OwnLoader", "Cuda"):
        assert quality[name] == pytest.approx(quality["Baseline"], abs=1e-6), name
    assert complete["Range255"]["model"]["data_range"] == 255
    assert complete["Cuda"]["audit"]["notes"] == ["asks for a GPU; answered by the CPU in every pass"]
    assert complete["Baseline"]["audit"]["notes"] == []
    assert complete["Nested"]["repository"]["files"].keys() == {
        "model_zoo/team02_Nested.pth", "models/__init__.py", "models/team01_Plain.py", "models/team02_Nested.py",
        "utils/__init__.py", "utils/model_summary.py",
    }  # fmt: skip


def test_what_was_measured_is_measured_again_only_when_it_changed(run, repository, tmp_path):
    assert run("--model_id", 0, 2).returncode == 0
    before = records(tmp_path)
    result = run("--model_id", 0, 2)
    assert "Baseline: measured before, unchanged" in result.stdout
    assert records(tmp_path) == before
    model = repository / "models" / "team02_Nested.py"
    model.write_text(model.read_text() + "\n# changed\n")
    result = run("--model_id", 0, 2)
    assert "Baseline: measured before" in result.stdout
    assert "Nested: measured before" not in result.stdout
    assert records(tmp_path)["Baseline"] == before["Baseline"]
    assert records(tmp_path)["Nested"] != before["Nested"]


def test_baseline_of_the_score_is_kept_like_the_others(run, tmp_path):
    assert run("--model_id", 0, "--score").returncode == 0
    assert records(tmp_path)["SPAN"]["environment"]["isolation"] != "none"
    result = run("--model_id", 0, "--score")
    assert "SPAN: measured before, unchanged" in result.stdout


@pytest.mark.slow
def test_what_was_measured_otherwise_is_measured_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.isolation.sandbox.why_not", lambda: "bwrap is not installed")

    def is_measured(*arguments):
        return "measured before" not in run("--model_id", 0, *arguments).stdout

    assert is_measured()
    write_png(tmp_path / "data" / "HR" / "a.png", photograph(64, 96, 5))
    assert is_measured()
    for arguments in (("--runs", 2), ("--repeats", 2), ("--workers", 1), ("--save_images",)):
        assert is_measured(*arguments), arguments
    assert not is_measured("--sandbox", "off")  # without bubblewrap that is the same
    assert is_measured("--sandbox", "off", "--fresh")


def test_trusted_checkpoint_is_unpickled_and_the_row_says_so(run, tmp_path):
    assert run("--model_id", 8, "--trust_checkpoint").returncode == 0
    notes = records(tmp_path)["Pickled"]["audit"]["notes"]
    assert notes == ["team08_Pickled.pth was unpickled as a whole, since --trust_checkpoint allows it"]


def test_unknown_id_lists_what_the_repository_knows(run):
    result = run("--model_id", 99)
    assert result.returncode == 2
    assert "which knows 0, 1, 2," in result.stderr
