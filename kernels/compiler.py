"""Compile C sources for this machine when they are first needed, and cache the libraries for later processes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

KERNELS = Path(__file__).parent
CACHE = KERNELS / ".compiled"  # libraries by a digest of what they are made of and for; can be deleted at any time
THEN = {"nothing": 0, "silu": 1, "attention": 2, "add": 3, "shuffle": 4}  # what follows a convolution; in C, SILU …
# Winograd's points by outputs per tile side: 0, infinity, and these with both signs. For 4 outputs, the usual points 1
# and 2 give three times the noise in bfloat16; 6 outputs are for products in float32.
POINTS = {4: (0.75, 1.5), 6: (0.5, 1.0, 2.0)}
NAMES = ("NEAR", "FAR", "FARTHEST")  # of the points in C
_compiling = threading.Lock()


def compiled(source: str, *options: str, **values: str | int) -> ctypes.CDLL:
    """Compile a C file of this folder with `options` and with `values` as macros; return the loaded library.

    Raise RuntimeError if there is no compiler, it rejects the source, or the library cannot be loaded.
    """
    candidates = (shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    compiler = next(filter(None, candidates), None)
    if compiler is None:
        raise RuntimeError("needs a C compiler; install gcc or clang, or take the backend fast")
    words = ["-O3", "-march=native", "-shared", "-fPIC", *options]
    words += [f"-D{name}={value}" for name, value in values.items()]
    kept = CACHE / f"{Path(source).stem}-{_digest(source, compiler, words)}.so"
    if kept.is_file():
        return _loaded(kept)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        command = [compiler, *words, str(KERNELS / source), "-o", str(library)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            errors = [line.rpartition("error:")[2].strip() for line in run.stderr.splitlines() if "error:" in line]
            raise RuntimeError(f"{compiler} cannot compile it: {(errors or ['it does not say why'])[0]}")
        return _loaded(kept if _keep(library, kept) else library)


def _loaded(library: Path) -> ctypes.CDLL:
    """Return a library, loaded. Raise RuntimeError if the system refuses, as for a folder where nothing may run."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(f"{library}: cannot be loaded ({error}); delete it") from error


def _digest(source: str, compiler: str, words: list[str]) -> str:
    """Return a digest of everything that decides the result: sources, compiler, options and processor."""
    digest = hashlib.sha256()
    for path in (KERNELS / source, *sorted(KERNELS.glob("*.h"))):
        digest.update(path.read_bytes())
    program = Path(compiler).resolve()
    digest.update(repr((str(program), program.stat().st_size, program.stat().st_mtime_ns, words)).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


@functools.cache
def _processor() -> str:
    """Return a description of the processor, which -march=native depends on; different machines may share a folder."""
    lines = []
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = ("model name", "flags", "Features", "CPU part")
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(names)]
    return "\n".join([platform.platform(), *sorted(set(lines))])


def _keep(library: Path, kept: Path) -> bool:
    """Copy a library to the cache in one step; return False if the cache cannot be written to."""
    partial = kept.with_suffix(f".{os.getpid()}.partial")
    try:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(library, partial)
        partial.replace(kept)
        return True
    except OSError:  # a read-only folder, as in a sandbox, or a full disk: the next process compiles again
        partial.unlink(missing_ok=True)
        return False


def compiled_if_possible(source: str, *options: str, **values: str | int) -> ctypes.CDLL | None:
    """Return what `compiled` returns, or None if it raises; compile once per process, even if several threads ask."""
    with _compiling:
        return _compiled_once(source, options, tuple(values.items()))


@functools.cache
def _compiled_once(
    source: str, options: tuple[str, ...], values: tuple[tuple[str, str | int], ...]
) -> ctypes.CDLL | None:
    try:
        return compiled(source, *options, **dict(values))
    except RuntimeError:
        return None


def compiled_convolution(source: str, precision: str, given: int = 4, **values: int) -> ctypes.CDLL:
    """Compile a C file of convolutions, which includes vectors.h; return the loaded library.

    `precision` is "float32", "float16" or "bfloat16". `given` is the number of outputs per side of a Winograd tile, for
    sources that use it. `values` are the source's other macros. Raise RuntimeError as `compiled` does.
    """
    points = {name: f"{point}f" for name, point in zip(NAMES, POINTS[given], strict=False)}
    then = {name.upper(): number for name, number in THEN.items()}
    return compiled(source, "-fopenmp", GIVEN=given, **values, **points, **then, **{precision.upper(): 1})
