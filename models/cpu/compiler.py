"""C sources, compiled for this machine when they are needed."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

THEN = {"nothing": 0, "silu": 1, "attention": 2, "add": 3, "shuffle": 4}  # what follows a convolution; in C, SILU …
# Winograd's tiles of so many outputs are evaluated at 0, infinity, and these with both signs. For 4, the usual 1 and 2
# give three times the noise in bfloat16; 6 is for products in float32.
POINTS = {4: (0.75, 1.5), 6: (0.5, 1.0, 2.0)}
NAMES = ("NEAR", "FAR", "FARTHEST")  # in C


def compiled(source, *options, **values):
    """Return a C source as a loaded library, compiled with these options and macros of these values.

    Raises RuntimeError without a compiler, or if it does not take the source.
    """
    candidates = (shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    compiler = next(filter(None, candidates), None)
    if compiler is None:
        raise RuntimeError("needs a C compiler; install gcc or clang, or take the backend fast")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        words = ["-O3", "-march=native", "-shared", "-fPIC", *options]
        words += [f"-D{name}={value}" for name, value in values.items()]
        run = subprocess.run([compiler, *words, str(source), "-o", str(library)], capture_output=True, text=True)
        if run.returncode:
            errors = [line.rpartition("error:")[2].strip() for line in run.stderr.splitlines() if "error:" in line]
            raise RuntimeError(f"{compiler} cannot compile it: {(errors or ['it does not say why'])[0]}")
        return ctypes.CDLL(str(library))


_compiling = threading.Lock()


def compiled_if_possible(source, *options, **values):
    """Return what `compiled` does, once for a process, whichever threads ask; None where it raises."""
    with _compiling:
        return _compiled_once(source, options, tuple(values.items()))


@functools.cache
def _compiled_once(source, options, values):
    try:
        return compiled(source, *options, **dict(values))
    except RuntimeError:
        return None


def compiled_convolution(source, precision, given=4, **values):
    """Return a C source of convolutions, which includes vectors.h, as a loaded library.

    `given` counts the outputs of a side of Winograd's tiles, for those that have them; `values` are what the source
    wants to have defined beside. Raises RuntimeError as `compiled` does.
    """
    values |= {name: f"{point}f" for name, point in zip(NAMES, POINTS[given], strict=False)}
    values |= {name.upper(): number for name, number in THEN.items()}
    return compiled(source, "-fopenmp", GIVEN=given, **values, **{precision.upper(): 1})
