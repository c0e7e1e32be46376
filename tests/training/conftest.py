"""What the training tests share: a tiny recipe, photographs, and how they are prepared."""

import pytest

from tests.helpers import RECIPES, write_photographs


@pytest.fixture
def recipe_path(tmp_path, request):
    """A tiny recipe; `both_kinds` gives one of each."""
    path = tmp_path / f"{getattr(request, 'param', 'collapsed')}.toml"
    path.write_text(RECIPES[path.stem])
    return path


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path / "hr")


@pytest.fixture
def prepare(command):
    def run(hr, out, *arguments):
        return command("-m", "training.prepare", "--hr", hr, "--out", out, "--processes", 1, *arguments)

    return run
