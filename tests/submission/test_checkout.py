"""utils/submission/checkout.py: a branch in the organizers' select_model, by its syntax tree, and nothing else."""

import ast
from dataclasses import replace

import pytest
import torch

from tests.helpers import git, write_checkout, write_model
from utils.errors import HarnessError
from utils.isolation.repository import repository_entries
from utils.submission.checkout import insert, stage, steps
from utils.zoo.registry import entry_from_file


@pytest.fixture
def entry(tmp_path):
    file, checkpoint = write_model(tmp_path / "mine", "team42_Net.py", None, "team42_Net.pth")
    return entry_from_file(file, "Net", {}, checkpoint)


OTHERS = "elif model_id == 1:\n        pass\n    # elif model_id == 2:\n    #     a comment\n    "


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("of_os", "more"), [(".path", ""), ("", OTHERS), (" as system", "")])
def test_branch_is_added_and_every_other_byte_stays(tmp_path, entry, of_os, more, newline):
    checkout = write_checkout(tmp_path / "esr", of_os, more, newline)
    before = (checkout / "test_demo.py").read_bytes()
    insert(entry, checkout)
    after = (checkout / "test_demo.py").read_bytes()
    added = [line for line in after.splitlines(keepends=True) if line not in before.splitlines(keepends=True)]
    assert all(line.endswith(newline.encode()) for line in added)
    rest = after.splitlines(keepends=True)
    start = rest.index(added[0])
    assert b"".join(rest[:start] + rest[start + len(added) :]) == before
    assert 42 in [other.id for other in repository_entries(checkout)]
    assert (b"        import os" in after) == (of_os == " as system")
    assert (checkout / "models" / "team42_Net.py").read_bytes() == (tmp_path / "mine" / "team42_Net.py").read_bytes()


def test_branch_builds_the_model(tmp_path, entry, monkeypatch):
    checkout = write_checkout(tmp_path / "esr")
    insert(entry, checkout)
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    names = {}
    tree = ast.parse((checkout / "test_demo.py").read_text())
    code = (tmp_path / "mine" / "team42_Net.py").read_text()
    branch = next(node for node in ast.walk(tree) if isinstance(node, ast.If) and "42" in ast.unparse(node.test))
    body = [node for node in branch.body if not isinstance(node, ast.ImportFrom)]
    exec(code, names)
    exec("import os, torch", names)
    names["model_id"] = 42
    exec(compile(ast.Module(body, []), "branch", "exec"), names)
    assert names["name"] == "42_Net"
    assert names["data_range"] == 1.0
    assert names["model"](torch.rand(1, 3, 8, 8)).shape == (1, 3, 32, 32)


def test_twice_is_once(tmp_path, entry):
    checkout = write_checkout(tmp_path / "esr")
    insert(entry, checkout)
    before = (checkout / "test_demo.py").read_bytes()
    insert(entry, checkout)
    assert (checkout / "test_demo.py").read_bytes() == before


@pytest.mark.parametrize("kind", ["taken", "other file", "changed", "no branches", "no repository", "not Python"])
def test_what_does_not_fit_costs_a_line_and_changes_nothing(tmp_path, entry, kind):
    checkout = write_checkout(tmp_path / "esr")
    program = checkout / "test_demo.py"
    line = {
        "taken": "id 0 is taken, by Base; ask the organizers for yours",
        "other file": "team42_Net.py: is another file than",
        "changed": r"has changes that are not committed \(models/team00_Base.py\)",
        "no branches": "has no branches by model id",
        "no repository": "name an organizers' repository",
        "not Python": "cannot be read as Python",
    }[kind]
    if kind == "taken":
        entry = replace(entry, id=0)
    elif kind == "other file":
        (checkout / "models" / "team42_Net.py").write_text("# theirs\n")
    elif kind == "changed":
        (checkout / "models" / "team00_Base.py").write_text("# changed\n")
    elif kind == "no branches":
        program.write_text("def select_model(args, device):\n    return None\n")
    elif kind == "no repository":
        program.unlink()
    else:
        program.write_text("def select_model(:\n")
    before = program.read_bytes() if program.exists() else None
    with pytest.raises(HarnessError, match=line):
        insert(entry, checkout)
    assert (program.read_bytes() if program.exists() else None) == before
    assert not list((checkout / "model_zoo").iterdir())


def test_steps_are_told_in_the_order_of_the_work(tmp_path, entry):
    checkout = write_checkout(tmp_path / "esr")
    assert [step.done for step in steps(entry, None)] == [True, None, None, None, None]
    assert [step.done for step in steps(entry, checkout)] == [True, False, False, False, None]
    paths = insert(entry, checkout)
    summary = stage(checkout, paths)
    assert "models/team42_Net.py" in summary
    assert "model_zoo/team42_Net.pth" in summary  # although .gitignore leaves checkpoints out
    assert [step.done for step in steps(entry, checkout)] == [True, True, True, True, False]
    git(checkout, "commit", "--quiet", "--message", "add")
    assert [step.done for step in steps(entry, checkout)] == [True, True, True, True, None]


def test_folder_without_git_costs_a_line(tmp_path, entry, monkeypatch):
    checkout = write_checkout(tmp_path / "esr")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(HarnessError, match="git status fails"):
        insert(entry, checkout)
