"""kernels/compiler.py: libraries are compiled once, kept, and left out where the system does not load them."""

import ctypes
import shutil

import pytest

from kernels import compiler
from kernels.compiler import compiled, compiled_if_possible

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    (tmp_path / "two.c").write_text("int two(void) { return VALUE; }")
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    monkeypatch.setattr(compiler, "CACHE", tmp_path / "cache")
    return tmp_path


def test_library_is_kept_for_the_next_process(sources, monkeypatch):
    assert compiled("two.c", VALUE=2).two() == 2
    assert len(list((sources / "cache").glob("two-*.so"))) == 1
    monkeypatch.setattr("subprocess.run", None)  # is not called again
    assert compiled("two.c", VALUE=2).two() == 2


def test_library_that_cannot_be_loaded_counts_as_none(sources, monkeypatch):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")  # as where nothing may be executed

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        compiled("two.c", VALUE=3)
    assert compiled_if_possible("two.c", VALUE=3) is None


def test_source_that_does_not_compile_gives_the_reason(sources):
    with pytest.raises(RuntimeError, match=r"cannot compile it: .*undeclared"):
        compiled("two.c", OTHER=1)
