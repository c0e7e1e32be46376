"""Imports run one way, and each subpackage of utils uses those that its docstring names."""

import ast
import graphlib
import re
import sys

import pytest

from utils.files import ROOT

PACKAGES = sorted(path.parent.name for path in (ROOT / "utils").glob("*/__init__.py"))
FLOORS = ("kernels", "models", "utils", "training", "benchmarks")  # from the ground up; each uses those below it


def imported(path):
    """Full names of the modules that a Python file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module


def used_by(package):
    names = {name for path in (ROOT / "utils" / package).glob("*.py") for name in imported(path)}
    return {name.split(".")[1] for name in names if name.startswith("utils.")} & set(PACKAGES) - {package}


def named_by(package):
    """The subpackages that a subpackage's docstring allows itself, in the sentence that begins with "It uses"."""
    text = ast.get_docstring(ast.parse((ROOT / "utils" / package / "__init__.py").read_text(encoding="utf-8")))
    return set(re.findall(r"`(\w+)`", text[text.index("It uses") :]))


@pytest.mark.parametrize("package", PACKAGES)
def test_subpackage_uses_what_its_docstring_says(package):
    assert used_by(package) == named_by(package)


def test_subpackages_do_not_import_each_other_in_a_circle():
    list(graphlib.TopologicalSorter({package: used_by(package) for package in PACKAGES}).static_order())


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_uses_only_those_below_it(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :]) | {path.stem for path in ROOT.glob("*.py")} | {"tests"}
    for path in (ROOT / floor).rglob("*.py"):
        assert not above & {name.partition(".")[0] for name in imported(path)}, path


def test_models_import_torch_alone():
    for path in (ROOT / "models").rglob("*.py"):
        own = {name.partition(".")[0] for name in imported(path)} - {"kernels", "models", *sys.stdlib_module_names}
        assert own <= {"torch", "triton"}, path  # torch brings Triton
