"""Build a model as an organizers' repository does: by calling the `select_model` of its `test_demo.py`.

Only that file's imports, constants and definitions are run, not its program. An import that fails there matters only if
it is used, because most imports of such a file serve its metrics.
"""

import argparse
import ast
import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import HarnessError, in_one_line
from utils.worker.without_gpu import CudaOnCpu, asks_for_cuda
from utils.zoo.checkpoints import TRUST, read_checkpoint

OURS = ("utils", "models", "benchmarks", "training")  # packages whose names an organizers' repository may have too
USUAL = ("einops", "scipy", "PIL", "yaml", "addict", "thop", "ptflops", "lmdb")  # of requirements-untrusted.txt
UNUSUAL = {
    "torchvision": "install the build of it that belongs to the installed torch, where there is one",
    "timm": "it needs torchvision, and that the build that belongs to the installed torch: pip install timm",
    "basicsr": "it needs an old torchvision; most entries need one function of it, which can be put into their file",
    "mmcv": "it is built for one torch and one CUDA; see its own instructions",
    "mamba_ssm": "it needs a GPU and nvcc: pip install mamba-ssm",
}
ARGUMENTS = {"data_dir": "../", "save_dir": "results", "include_test": False, "hybrid_test": False, "ssim": False}


def load_from_repository(
    folder: str, model_id: int, device: torch.device, trust: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (network in eval mode, JSON-ready answer) for one entry of the repository in `folder`.

    The answer holds `name`, `data_range`, `files` read (paths), and `notes`, a line for each
    difference from the repository's own program. Raise HarnessError with the reason if there is no such model.
    """
    leave_our_packages(folder)
    loads, cuda = SafeLoad(device, trust), CudaOnCpu()
    torch.load = loads  # type: ignore[assignment]
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu:
        cuda.__enter__()
    try:
        select_model = functions_of_file(Path("test_demo.py"))["select_model"]
        chosen = select_model(argparse.Namespace(model_id=model_id, **ARGUMENTS), torch.device(device))
        model, name, data_range, _tile = chosen
        model.eval()
        for _, parameter in model.named_parameters():
            parameter.requires_grad = False
        model = model.to(device)
        keep = on_cpu and fails_without(cuda, model, float(data_range))
    except ModuleNotFoundError as error:
        raise HarnessError(f"imports {error.name}, which is not installed; {_provided_by(error.name or '')}") from error
    except UnboundLocalError as error:
        raise HarnessError(f"select_model gives no model for id {model_id} ({in_one_line(error)})") from error
    except HarnessError:
        raise
    except Exception as error:  # untrusted code may raise anything
        raise HarnessError(f"select_model fails ({in_one_line(error)})") from error
    finally:
        torch.load = loads.original
    if on_cpu and not keep:
        cuda.__exit__(None, None, None)
    notes = [*loads.notes]
    if cuda.used:
        notes.append(f"asks for a GPU; answered by the CPU {'in every pass' if keep else 'while it was built'}")
    imported = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    ours = sorted(path for path in imported if path and Path(path).is_relative_to(folder))
    return model, {
        "name": str(name)[:80],
        "data_range": float(data_range),
        "files": [*ours, *loads.paths],
        "notes": notes,
    }


def _provided_by(module: str) -> str:
    """Return what to do about an imported package that is not installed."""
    first = module.partition(".")[0]
    if first in USUAL:
        return "try pip install --requirement requirements-untrusted.txt"
    if first in UNUSUAL:
        return UNUSUAL[first]
    return f"install {first} if you trust it: its code would run outside of the sandbox"


def leave_our_packages(folder: str) -> None:
    """Make the repository the working directory and the first import path, and forget this project's packages."""
    os.chdir(folder)
    sys.path[:] = [str(folder), *(place for place in sys.path if not (Path(place) / "utils" / "worker").is_dir())]
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()


def functions_of_file(path: Path) -> dict[str, Any]:
    """Run a Python file's imports, assignments and definitions; return its names."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    names: dict[str, Any] = {"__name__": "test_demo", "__file__": str(path.resolve())}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            try:
                run(node, names)
            except ImportError as error:
                names |= {alias.asname or alias.name.partition(".")[0]: Missing(error) for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)):
            run(node, names)
    if "select_model" not in names:
        raise HarnessError(f"{path.resolve()}: has no function select_model; is this an organizers' repository?")
    return names


def run(node: ast.stmt, names: dict[str, Any]) -> None:
    exec(compile(ast.Module([node], []), names["__file__"], "exec"), names)  # the user has allowed it to run


class Missing:
    """A placeholder for a failed import. Any use raises that import's error."""

    def __init__(self, error: ImportError):
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error

    def __call__(self, *arguments: object, **named: object) -> Any:
        raise self._error


class SafeLoad:
    """torch.load, but for plain tensors only unless `trust` is set, and onto this machine's device."""

    def __init__(self, device: torch.device, trust: bool):
        self.original, self.device, self.trust = torch.load, torch.device(device), trust
        self.paths: list[str] = []
        self.notes: list[str] = []

    def __call__(self, file: Any, *arguments: object, **named: object) -> Any:
        if not isinstance(file, (str, os.PathLike)):
            return self._open_file(file)
        path = Path(file).resolve()
        try:
            state = read_checkpoint(path, False, (TRUST,), self.original, str(self.device))
        except HarnessError as error:
            if not self.trust or not isinstance(error.__cause__, pickle.UnpicklingError):
                raise
            state = read_checkpoint(path, True, (), self.original, str(self.device))
            self._note(path.name)
        self.paths.append(str(path))
        return state

    def _open_file(self, file: Any) -> Any:
        """Load from a file object, whose path is not known."""
        start = file.tell()  # torch.load takes only files that can be read again
        try:
            return self.original(file, map_location=self.device, weights_only=True)
        except pickle.UnpicklingError as error:
            if not self.trust:
                raise HarnessError(
                    f"an open file: not plain tensors, so loading it could run code; add {TRUST} to run it"
                ) from error
        file.seek(start)
        self._note("an open file")
        return self.original(file, map_location=self.device, weights_only=False)

    def _note(self, name: str) -> None:
        self.notes.append(f"{name} was unpickled as a whole, since {TRUST} allows it")


@torch.no_grad()
def fails_without(cuda: CudaOnCpu, model: nn.Module, data_range: float) -> bool:
    """Return whether a pass asks for a GPU, so that `cuda`, which is active, must stay."""
    if not cuda.used:
        return False
    cuda.__exit__(None, None, None)
    try:
        model(torch.rand(1, 3, 64, 64) * data_range)
        return False
    except Exception as error:
        return asks_for_cuda(error)
    finally:
        cuda.__enter__()
