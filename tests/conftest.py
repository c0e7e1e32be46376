"""Fixtures of all tests. By default, slow tests do not run, models' processes are forked, and GPUs are hidden."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import training.prepare
from tests.helpers import (
    QUICK,
    ROOT,
    SMALL_CUT,
    command_module,
    model_words,
    write_model,
    write_pairs,
    write_photographs,
)
from tests.workers import Workers
from utils.errors import exit_on_harness_error
from utils.record import Waiting

SHARED = ROOT.parent / "shared"
NOT_EXERCISED = "not_exercised"  # key of the kernel, in a report, that could not run here


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, and no others")


def pytest_collection_modifyitems(config, items):
    slow = config.getoption("--slow")
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    left_out = [
        item
        for item in items
        if (item.get_closest_marker("slow") is not None) is not slow
        and (slow or item.path not in named)  # a slow test runs where its file is named
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # of pytest-xdist: the cores are shared by several
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let the report of a skipped test say which kernel it would have run."""
    report = yield
    if report.skipped and (marker := item.get_closest_marker("kernel")):
        report.user_properties.append((NOT_EXERCISED, marker.args[0]))
    return report


def pytest_terminal_summary(terminalreporter):
    """List in one line the kernels that this machine could not run, since changes to them are untested here."""
    skipped = terminalreporter.stats.get("skipped", [])
    kernels = {value for report in skipped for name, value in report.user_properties if name == NOT_EXERCISED}
    if kernels:
        terminalreporter.write_line(f"kernels not exercised on this machine: {', '.join(sorted(kernels))}")


@pytest.fixture
def shared():
    """Return the folder of published checkpoints and benchmarks; skip the test if it does not exist."""
    if not SHARED.is_dir():
        pytest.skip(f"no published material in {SHARED}")
    return SHARED


@pytest.fixture
def pairs(tmp_path):
    """Return a data folder with two small pairs, a and b, in the plain layout."""
    return write_pairs(tmp_path / "data", ["a", "b"])


@pytest.fixture
def command(monkeypatch, capfd):
    """Return a function that runs a script of the project, or `-m` and a module, in this process.

    It returns the status and the output. A new process for each command would spend most of the tests' time on
    importing torch.
    """

    def run(*arguments, cwd=ROOT):
        words = list(map(str, arguments))
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(str(ROOT))
        module = command_module(words.pop(1)) if words[0] == "-m" else None
        monkeypatch.setattr(sys, "argv", words)
        capfd.readouterr()
        try:
            exit_on_harness_error(module.main) if module else runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        printed, complaints = capfd.readouterr()
        return subprocess.CompletedProcess(words, status, printed, complaints)

    return run


@pytest.fixture
def submission(tmp_path):
    """Return a function that writes a model file, with changes, and its weights, and returns eval.py's options."""

    def write(**changes):
        return model_words(write_model(tmp_path, **changes))

    return write


@pytest.fixture
def submit(tmp_path, command):
    """Return a function that measures a model file by eval.py with the smallest settings and returns the result.

    `words` are further options of the command; `changes` are those of `write_model`.
    """

    def run(*words, data=None, **changes):
        paths = write_model(tmp_path, **changes)
        data = data or write_pairs(tmp_path / "data", ["a", "b"])
        return command("eval.py", *QUICK, "--data_dir", data, *model_words(paths), *words, cwd=tmp_path)

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Return a training set of three photographs; do not write to it."""
    folder = tmp_path_factory.mktemp("prepared")
    words = ("--hr", write_photographs(folder / "hr"), "--out", folder / "out", "--processes", 1, *SMALL_CUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training.prepare", *map(str, words)])
        training.prepare.main()
    return folder / "out"


@pytest.fixture(scope="session")
def forking():
    """Return the Workers that fork the models' processes."""
    running = Workers()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def forked(request, monkeypatch):
    """Fork models' processes instead of starting them, and return a constant for their memory.

    Tests marked `real_process` start real processes, in a sandbox if there is one, and measure their memory.
    """
    if request.node.get_closest_marker("real_process"):
        return
    monkeypatch.setattr("utils.isolation.process.start_process", request.getfixturevalue("forking").start)
    monkeypatch.setattr("utils.evaluate.runner.cpu_peak_mib", lambda entry, shape: 1.0)
    monkeypatch.setattr("utils.isolation.host.IsolatedRunner.cpu_peak_mib", lambda worker, shape: 1.0)
    monkeypatch.setattr("utils.isolation.host.ECHO_SIDES", (32, 64, 128))


@pytest.fixture(autouse=True)
def busy(monkeypatch):
    """Make an audit consider the machine busy, so that it has no findings about times.

    Such findings depend on the other work on the machine. Tests of them have their own clocks, or use `quiet`.
    """
    monkeypatch.setattr("utils.isolation.host.IsolatedRunner.waiting", lambda worker: Waiting(1.0, 1.0))


@pytest.fixture
def quiet(busy, monkeypatch):
    """Make an audit consider the machine idle."""
    monkeypatch.setattr("utils.isolation.host.IsolatedRunner.waiting", lambda worker: Waiting(0.0, 0.0))


@pytest.fixture(autouse=True)
def hidden_gpu(monkeypatch):
    """Hide GPUs from tests and their processes, since they expect a CPU's results; tests/test_cuda.py overrides it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
