"""utils/isolation/sandbox.py: what a worker cannot reach."""

import os
import subprocess
import sys

import pytest

from tests.helpers import QUICK, needs_sandbox
from utils.errors import HarnessError
from utils.files import ROOT
from utils.isolation import sandbox
from utils.isolation.sandbox import choose_sandbox, run_apart, sandboxed, with_what_is_hidden

pytestmark = [needs_sandbox, pytest.mark.real_process]


@pytest.fixture
def inside(tmp_path):
    """Runs Python code in the sandbox, with its own file readable; gives the last line that it complains with."""

    def run(code):
        file = tmp_path / "code.py"
        file.write_text(f"import os, socket\n{code}")
        result = subprocess.run(sandboxed([sys.executable, file], [file]), capture_output=True, text=True)
        return (result.stderr.strip().splitlines() or [""])[-1]

    return run


def test_python_and_torch_run(inside):
    assert inside("import torch; torch.zeros(2).sum()") == ""


def test_user_has_a_name(inside, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert inside("import getpass; getpass.getuser()") == ""
    assert inside("import torch._dynamo.config, torch._inductor.config") == ""


@pytest.mark.parametrize(
    ("compiler", "folder"), [("/opt/gcc/bin/gcc", "/opt/gcc"), ("/home/me/bin/gcc", "/home/me"), (None, "/")]
)
def test_compiler_of_its_own_is_there_but_nobodys_home(monkeypatch, compiler, folder):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: compiler)
    shown = sandboxed(["true"], [])
    assert (folder in shown[shown.index("--ro-bind-try") : shown.index("--remount-ro")]) == (folder == "/opt/gcc")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (f"open({str(ROOT / 'README.md')!r})", "No such file"),
        (f"open({str(ROOT / 'utils' / 'evaluate' / 'metrics.py')!r})", "No such file"),
        ("open('/usr/written', 'w')", "Read-only file system"),
        (f"os.listdir({os.path.expanduser('~/.ssh')!r})", "No such file"),
        ("socket.create_connection(('192.0.2.1', 80), 2)", "Network is unreachable"),
        pytest.param(f"os.kill({os.getpid()}, 0)", "No such process", id="signal"),  # named alike in every process
    ],
)
def test_what_is_not_its_own_is_out_of_reach(inside, code, words):
    assert words in inside(code)


def test_nothing_is_written_to_the_project(inside):
    inside(f"open({str(ROOT / 'written')!r}, 'w')")  # a project below /tmp may look writable from inside
    assert not (ROOT / "written").exists()


def test_temporary_folder_is_its_own(inside, tmp_path):
    assert inside("open('/tmp/mine', 'w'); assert os.listdir('/tmp') != []") == ""
    assert not os.path.exists("/tmp/mine")


def test_command_may_write_to_its_folder_alone(tmp_path):
    (tmp_path / "own").mkdir()
    code = "open('here', 'w'); open('../there', 'w')"  # which may go to the sandbox's own /tmp
    run_apart([sys.executable, "-c", code], tmp_path / "own", tmp_path / "log", "require")
    assert (tmp_path / "own" / "here").exists()
    assert not (tmp_path / "there").exists()


def test_files_may_be_named_from_where_one_is(command, submission, pairs, tmp_path):
    words = (getattr(word, "name", word) for word in submission())
    result = command("eval.py", *QUICK, "--data_dir", pairs, *words, "--sandbox", "require", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_absent_bubblewrap_is_told(monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda: "bwrap is not installed")
    assert choose_sandbox("auto") == (False, "no sandbox (bwrap is not installed)")
    assert choose_sandbox("off") == (False, "no sandbox (--sandbox off)")
    with pytest.raises(HarnessError, match="--sandbox require: bwrap is not installed"):
        choose_sandbox("require")


@pytest.mark.parametrize(
    ("message", "is_hidden"),
    [
        ("FileNotFoundError: [Errno 2] No such file or directory: '{folder}/net.json'", True),
        ("FileNotFoundError: [Errno 2] No such file or directory: '{folder}/nowhere.json'", False),
        ("net.py: imports helper, which is not installed; install it or remove the import", True),
        ("net.py: imports parts, which is not installed; install it or remove the import", True),
        ("net.py: imports nowhere, which is not installed; install it or remove the import", False),
        ("net.py: cannot build Net (line 3: KeyError: 'helper')", False),
        (f"No such file or directory: '{'x' * 400}'; imports {'x' * 400}, which is not installed", False),
    ],
)
def test_what_is_there_but_hidden_is_told(tmp_path, message, is_hidden):
    for name in ("net.json", "helper.py", "parts/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    message = message.format(folder=tmp_path)
    told = with_what_is_hidden(message, tmp_path)
    assert told.startswith(message)
    assert ("it is there, but hidden" in told) == is_hidden
