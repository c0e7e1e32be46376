"""The organizers' submission rules as a checklist: each rule passes, fails with a reason, or is skipped with one."""

import ast
import math
import re
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.challenge.rules import Edition
from utils.data.datasets import Dataset, is_challenge, open_dataset, read_fitting_hr
from utils.data.images import to_tensor
from utils.data.sample import ensure_sample
from utils.errors import ForeignError, HarnessError, in_one_line
from utils.evaluate.evaluation import evaluate
from utils.evaluate.metrics import psnr
from utils.files import ROOT
from utils.isolation.host import IsolatedRunner
from utils.isolation.process import Limits
from utils.protocol import SCALE
from utils.record import mean
from utils.zoo.checkpoints import load_state_dict
from utils.zoo.registry import ModelEntry, with_checkpoint

MODEL_NAME = re.compile(r"team(\d{2})_(\w+)\.py")
CHECKPOINT_NAME = re.compile(r"team(\d{2})_(\w+)\.(pth|pt|ckpt)")
SIZES = ((17, 23), (24, 25), (33, 32), (64, 48))  # H, W of LR images: odd ones, and sides that differ by one
CLAIMS = {"params_m": ("params", 1e6), "flops_g": ("flops", 1e9), "activations_m": ("activations", 1e6)}
PYTHON, TORCH = (3, 9), "1.13.1"  # the organizers'
ENVIRONMENT = f"Python {PYTHON[0]}.{PYTHON[1]} with torch {TORCH}"
NEWER = (  # names that torch added after this version
    "torch.compile",
    "torch.compiler",
    "torch.export",
    "torch.func",
    "torch.vmap",
    "torch.set_default_device",
    "torch.get_default_device",
    "torch.unravel_index",
    "torch.nn.attention",
    "scaled_dot_product_attention",
    "nn.RMSNorm",
    "nn.CircularPad2d",
    "nn.Buffer",
    "parametrizations.weight_norm",
)
PASS, FAIL, SKIP = "pass", "FAIL", "skip"
START_S, IMAGE_S = 300, 60  # time limits of a network's checks, and of each image scored for PSNR


@dataclass(frozen=True)
class Check:
    """A rule's outcome: `status` is PASS, FAIL or SKIP; `detail` says what was seen, or why not."""

    rule: str
    status: str
    detail: str


class BrokenRuleError(Exception):
    """A rule is broken; the message says how."""


class UncheckableError(Exception):
    """A rule cannot be checked; the message says why."""


def check_submission(
    entry: ModelEntry,
    requirements: Collection[str] | None = None,
    dataset: Dataset | None = None,
    edition: Edition | None = None,
    sandbox: str = "auto",
) -> list[Check]:
    """Return a list of Check for an entry of the registry or of `entry_from_file`, running its code in a worker.

    `requirements` are the names of the packages that the organizers' repository installs, or None if unknown. PSNR is
    measured on `dataset` and compared with the threshold of `edition`.
    """
    return [
        _check("names and numbers", _names, entry),
        _check("imports torch and the standard library only", _imports, entry, requirements),
        _check(f"runs in the organizers' environment, {ENVIRONMENT}", _environment, entry),
        _check("checkpoint holds plain tensors", _plain_tensors, entry),
        *_checks_by_running(entry, dataset, edition, sandbox),
    ]


def _checks_by_running(
    entry: ModelEntry, dataset: Dataset | None, edition: Edition | None, sandbox: str
) -> list[Check]:
    """Return the checks that run the submission's code. If its process ends early, return only that failure."""
    limits = Limits(START_S + IMAGE_S * (len(dataset.pairs) if dataset else 0))
    with tempfile.TemporaryDirectory() as folder:
        # A submission without its checkpoint is an error. The organizers take no prefix off its keys.
        checked = replace(with_checkpoint(entry, entry.checkpoint_path), exact=True)
        worker = IsolatedRunner(checked, torch.device("cpu"), Path(folder) / "log", limits, sandbox)
        try:
            checks = _checks_of(worker, entry, dataset, edition)
            worker.ask("changed")  # whether it still answers
        except (HarnessError, ForeignError) as error:
            return [Check("runs in a separate process", FAIL, str(error))]
        finally:
            worker.close()
    return [Check("runs in a separate process", PASS, worker.sandbox.line), *checks]


def _checks_of(
    worker: IsolatedRunner, entry: ModelEntry, dataset: Dataset | None, edition: Edition | None
) -> list[Check]:
    strict = _check("checkpoint loads strictly", _strict_load, worker, entry)
    runs = None if worker.watched.process.poll() is not None or not worker.loaded else worker
    checks = [
        _check(f"output is {SCALE}x the input, at odd sizes too", _output_size, runs, entry),
        _check("output is finite", _finite, runs, entry),
        _check("output is deterministic, on a second call too", _deterministic, runs, entry),
        _check("output fits data_range", _value_range, runs, entry),
        _check("PSNR of the sample is above bicubic upscaling's", _better_than_bicubic, runs),
        _check("parameters and FLOPs as claimed", _claims, runs, entry),
        _check("PSNR reaches the threshold", _threshold, runs, dataset, edition),
    ]
    return [_check("leaves global state alone", _global_state, worker), strict, *checks]


def _check(rule: str, function: Callable[..., str], *arguments: Any) -> Check:
    try:
        return Check(rule, PASS, function(*arguments))
    except UncheckableError as reason:
        return Check(rule, SKIP, str(reason))
    except (BrokenRuleError, HarnessError) as fault:
        return Check(rule, FAIL, str(fault))
    except Exception as error:  # untrusted code may raise anything
        return Check(rule, FAIL, in_one_line(error))


def _names(entry: ModelEntry) -> str:
    file, checkpoint = (
        MODEL_NAME.fullmatch(Path(entry.file).name),
        CHECKPOINT_NAME.fullmatch(entry.checkpoint_path.name),
    )
    if not file:
        raise BrokenRuleError(f"{Path(entry.file).name}: a model file is named teamNN_Name.py, NN two digits")
    if not checkpoint:
        raise BrokenRuleError(f"{entry.checkpoint_path.name}: a checkpoint is named teamNN_Name.pth, .pt or .ckpt")
    if file.groups() != checkpoint.groups()[:2]:
        raise BrokenRuleError(f"{file[0]} and {checkpoint[0]}: number and name differ; give both the same")
    if int(file[1]) != entry.id:
        raise BrokenRuleError(f"{file[0]}: team number {file[1]}, but the model's id is {entry.id}")
    return f"models/{file[0]}, model_zoo/{checkpoint[0]}"


def _imports(entry: ModelEntry, requirements: Collection[str] | None) -> str:
    path = ROOT / entry.file
    allowed = {*sys.stdlib_module_names, "torch"}
    others = sorted(_imported_names(path) - allowed)
    local = [name for name in others if (ROOT / name).exists() or path.with_name(f"{name}.py").exists()]
    if local or "." in others:
        raise BrokenRuleError(
            f"imports {', '.join(local) or 'a neighbour'} of its own; a submission is one file, merge it in"
        )
    missing = [name for name in others if requirements is None or name.lower() not in requirements]
    if missing and requirements is None:
        raise BrokenRuleError(
            f"imports {', '.join(missing)}; name the organizers' requirements.txt by --requirements if it has it"
        )
    if missing:
        raise BrokenRuleError(f"imports {', '.join(missing)}, which the organizers' requirements do not hold")
    return f"also {', '.join(others)}, which the organizers' requirements hold" if others else "nothing else"


def _imported_names(path: Path) -> set[str]:
    """Return the top-level names of a Python file's imports; "." for a relative one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level or not node.module else node.module.partition(".")[0])
    return names


def _environment(entry: ModelEntry) -> str:
    """Look for syntax that the organizers' Python cannot parse, and for names that their torch lacks."""
    try:
        tree = ast.parse((ROOT / entry.file).read_text(encoding="utf-8"), feature_version=PYTHON)
    except SyntaxError as error:
        raise BrokenRuleError(
            f"line {error.lineno}: {error.msg}; the organizers have Python {PYTHON[0]}.{PYTHON[1]}"
        ) from error
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            used |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
    newer = sorted({name for name in NEWER for one in used if f".{one}".endswith(f".{name}")})
    if newer:
        raise BrokenRuleError(f"uses {', '.join(newer)}, which torch {TORCH} does not have; write it by other means")
    return "nothing newer found"


def _plain_tensors(entry: ModelEntry) -> str:
    state = load_state_dict(entry.checkpoint_path, entry.state_key)
    return f"{len(state)} tensors"


def _strict_load(worker: IsolatedRunner, entry: ModelEntry) -> str:
    worker.load()
    if entry.lenient:
        raise BrokenRuleError("loads with strict=False; the rules ask for load_state_dict(strict=True)")
    return "strict=True"


def _global_state(worker: IsolatedRunner) -> str:
    changed = worker.ask("changed")
    if changed:
        raise BrokenRuleError(f"changes {', '.join(changed)}")
    return "imported, built and run"


def _needed(worker: IsolatedRunner | None) -> IsolatedRunner:
    if worker is None:
        raise UncheckableError("needs a network that can be built and loaded")
    return worker


def _random_lr(entry: ModelEntry, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * entry.data_range


def _output_size(worker: IsolatedRunner | None, entry: ModelEntry) -> str:
    runs = _needed(worker)
    for height, width in SIZES:
        try:
            runs.forward(_random_lr(entry, (height, width)))
        except ForeignError as error:
            raise BrokenRuleError(f"fails on an LR image of {width} x {height} ({error})") from error
    return ", ".join(f"{width} x {height}" for height, width in SIZES)


def _finite(worker: IsolatedRunner | None, entry: ModelEntry) -> str:
    runs = _needed(worker)
    inputs = {"black": 0.0, "white": entry.data_range}
    for name, value in inputs.items():
        if not torch.isfinite(runs.forward(torch.full((1, 3, *SIZES[-1]), value)).output).all():
            raise BrokenRuleError(f"NaN or infinite values for a {name} image")
    if not torch.isfinite(runs.forward(_random_lr(entry, SIZES[-1])).output).all():
        raise BrokenRuleError("NaN or infinite values for random pixels")
    return "black, white and random images"


def _deterministic(worker: IsolatedRunner | None, entry: ModelEntry) -> str:
    runs = _needed(worker)
    lr = _random_lr(entry, SIZES[-1])
    first = runs.forward(lr).output.clone()
    runs.forward(_random_lr(entry, SIZES[1], seed=1))
    if not torch.equal(first, runs.forward(lr).output):
        raise BrokenRuleError("the same image gives another result on a second call")
    return "equal to the last bit, another size in between"


def _value_range(worker: IsolatedRunner | None, entry: ModelEntry) -> str:
    runs = _needed(worker)
    lr = open_dataset(ensure_sample()).pairs[0].read_lr()
    sr = runs.forward(to_tensor(lr, entry.data_range)).output
    ratio = sr.mean().item() / (lr.mean() / 255 * entry.data_range)
    low, high = (np.percentile(sr.numpy(), q) / entry.data_range for q in (1, 99))
    if not (0.8 < ratio < 1.25 and low > -0.25 and high < 1.25):
        raise BrokenRuleError(
            f"on a photograph the output's mean is {ratio:.3g} times the input's, 1 to 99 % of values lie in "
            f"{low:.3g} to {high:.3g} of data_range {entry.data_range:g}; is it the other one, or are weights missing?"
        )
    return f"mean {ratio:.3f} times the input's on a photograph, data_range {entry.data_range:g}"


def _better_than_bicubic(worker: IsolatedRunner | None) -> str:
    """Compare with bicubic upscaling: exchanged channels, a wrong export or missing weights fall far below it."""
    runs = _needed(worker)
    dataset = open_dataset(ensure_sample())
    reached = mean(image.psnr for image in evaluate(runs, dataset)) or -math.inf
    results = []
    for pair in dataset.pairs:
        lr = pair.read_lr()
        upscaled = cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        results.append(psnr(upscaled, read_fitting_hr(pair, lr)))
    bicubic = sum(results) / len(results)
    if reached <= bicubic:
        raise BrokenRuleError(
            f"{reached:.2f} dB, bicubic upscaling has {bicubic:.2f}; are colours exchanged, or are these the "
            "weights of another network?"
        )
    return f"{reached:.2f} dB, bicubic upscaling has {bicubic:.2f}"


def _claims(worker: IsolatedRunner | None, entry: ModelEntry) -> str:
    runs = _needed(worker)
    if not entry.published:
        raise UncheckableError("the registry's entry publishes no figures")
    counts = runs.count()
    seen = []
    for key, (name, unit) in CLAIMS.items():
        if key in entry.published:
            claim = entry.published[key]
            digits = len(str(claim).partition(".")[2])
            actual = getattr(counts, name) / unit
            if round(actual, digits) != claim:
                raise BrokenRuleError(f"{key} is claimed as {claim}, counted as {actual:.{max(digits, 3)}f}")
            seen.append(f"{key} {claim}")
    return ", ".join(seen)


def _threshold(worker: IsolatedRunner | None, dataset: Dataset | None, edition: Edition | None) -> str:
    runs = _needed(worker)
    if dataset is None or edition is None or not dataset.has_hr:
        raise UncheckableError("no data given; name the challenge's folder by --data_dir")
    if not is_challenge(dataset.label, dataset.split):
        raise UncheckableError(f"the threshold speaks of DIV2K_LSDIR_{dataset.split}, the data is {dataset.label}")
    reached = mean(image.psnr for image in evaluate(runs, dataset)) or -math.inf
    wanted = edition.threshold[dataset.split]
    if round(reached, 2) < wanted:
        raise BrokenRuleError(f"{reached:.4f} dB, {edition.year} asks for {wanted:.2f}")
    return f"{reached:.4f} dB, {edition.year} asks for {wanted:.2f}"
