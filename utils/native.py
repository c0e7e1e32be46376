"""Small C sources of this project, compiled when they are first needed, where there is a compiler."""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

WIDE = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def compiled(source, **defines):
    """Return a C file as a loaded library, None without a compiler or if it does not take the file."""
    found = (shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    compiler = next(filter(None, found), None)
    if compiler is None:
        return None
    words = ["-O3", "-march=native", *WIDE, "-fopenmp-simd", "-shared", "-fPIC"]
    words += [f"-D{name}={value}" for name, value in defines.items()]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        run = subprocess.run([compiler, *words, str(source), "-o", str(library)], capture_output=True)
        return None if run.returncode else ctypes.CDLL(str(library))
