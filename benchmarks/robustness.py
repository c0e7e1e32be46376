"""Test broken input, crashing models and killed runs: python -m benchmarks.robustness [--kills 20]

Method. Every trial runs eval.py as a user would, on small images, with a results file that already holds a record.

1. Broken input: one trial per kind. It is contained if eval.py ends with a non-zero status and without a traceback, the
   earlier record is untouched, and the reason appears in the trial's row (models, isolated) or in the last line.
2. Kills: a measurement over 30 images is killed by SIGKILL at random moments and started again. Every second kill comes
   after its record has begun to grow. In the end, the record must equal that of an uninterrupted run, except for times.
3. Four evaluations use one results file at once while a reader keeps opening it. The file must always be complete, and
   hold all four rows in the end.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import nn

from benchmarks.memory import make_data
from utils.errors import exit_on_harness_error
from utils.files import ROOT
from utils.measure.environment import choose_device, describe_environment
from utils.options import natural, parse, positive
from utils.record import (
    RECORDS_FILE,
    Clock,
    DatasetInfo,
    Images,
    Memory,
    MemoryMethod,
    ModelInfo,
    Record,
    Runtime,
    Status,
    read_incomplete,
    read_results,
    records_by_name,
    store_record,
)

NETWORK = """
import os, signal, sys, threading, time
import torch
import torch.nn.functional as F
from torch import nn
{top}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3, padding=1)
        self.up = nn.PixelShuffle(4)
        {constructor}

    def forward(self, x):
        {forward}
        return F.interpolate(x, scale_factor=4, mode="bicubic") + self.up(self.conv(x))
"""
NO_ANSWER = """
from utils.worker.channel import Channel
Channel.send = lambda self, message: self.connection.send_bytes(b"[" * 900_000)
"""
# The record that each trial's results file holds beforehand, with everything that the schema requires.
EARLIER = Record(
    status=Status.COMPLETE,
    model=ModelInfo(
        id=0,
        name="Earlier",
        origin="file",
        slug="earlier",
        file="earlier.py",
        file_sha256="",
        class_name="Net",
        arguments=[],
        data_range=1.0,
        checkpoint="",
        variant_of=None,
        sha256="",
        provenance="",
    ),
    environment=describe_environment(torch.device("cpu")),
    dataset=DatasetInfo(label="", split="valid", folder="", images=0, has_hr=True, sha256="", notes=[]),
    images=Images(),
    runtime=Runtime(clock=Clock.WALL),
    memory=Memory(method=MemoryMethod.PROCESS_GROWTH),
)
Words = tuple[object, ...]  # of a command line
Damage = Callable[[Path], object]  # what is done to a file or a folder
KILLED = "registry 7"  # the model that is killed, as a results file names it
QUICK = ("--runs", 1, "--warmup", 1, "--repeats", 1)
LIMITS = {"cpu": (0.3, 2), "cuda": (0.6, 16)}  # of time [minutes] and memory [GiB]; CUDA itself takes some of both


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


MODELS = {  # kind: what the model file does
    "raises when imported": {"top": "raise RuntimeError('boom')"},
    "syntax error": {"top": "def"},
    "imports what is not installed": {"top": "import nowhere_to_be_found"},
    "exits when imported": {"top": "sys.exit(0)"},
    "raises in the constructor": {"constructor": "raise KeyError('cfg')"},
    "cuda() in the constructor": {"constructor": "raise RuntimeError('Found no NVIDIA driver')"},
    "raises in forward": {"forward": "raise ValueError('boom')"},
    "raises at the second image": {"forward": "self.n = getattr(self, 'n', 0) + 1; assert self.n < 2"},
    "raises in the steady passes": {"forward": "self.n = getattr(self, 'n', 0) + 1; assert self.n < 3"},
    "hangs in forward": {"forward": "time.sleep(3600)"},
    "hangs, deaf to SIGTERM": {"forward": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"},
    "ends the process with status 0": {"forward": "os._exit(0)"},
    "crashes the interpreter": {"forward": "os.kill(os.getpid(), signal.SIGSEGV)"},
    "eats memory": {"forward": "self.all = [torch.ones(2**26) for _ in range(1000)]"},
    "prints without end": {"forward": "\n        while True: print('x' * 1000)"},
    "gives another size": {"forward": "return x"},
    "gives a list": {"forward": "return [x]"},
    "sends an invalid reply": {"top": NO_ANSWER},
    "has a lazy module": {"constructor": "self.conv = nn.LazyConv2d(48, 3, padding=1)"},
    "imports a neighbour": {"top": "import models.nowhere_to_be_found"},
    "hides behind a thread": {"top": "threading.Thread(target=time.sleep, args=(3600,)).start(); raise OSError"},
}
CHANGES = {  # kind: side effects of a model file that works; they must not affect the next model
    "leaves threads": {"top": "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()"},
    "changes global state": {"top": "torch.set_default_dtype(torch.float32); torch.set_num_threads(1); os.chdir('/')"},
    "prints rubbish": {"forward": r"os.write(1, b'\xff\x00error: nothing\n')"},
}


def write_image(path: Path, shape: tuple[int, ...] = (16, 24, 3), dtype: Any = np.uint8) -> None:
    """Write a black PNG."""
    cv2.imwrite(str(path), np.zeros(shape, dtype))


def cut(path: Path, length: int) -> None:
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:length])


DATA = {  # kind: damage to a data folder with HR/ and LR/
    "no such folder": lambda data: data.rename(data.with_name("gone")),
    "empty LR folder": lambda data: [path.unlink() for path in (data / "LR").iterdir()],
    "HR without LR": lambda data: (data / "LR" / "00001x4.png").unlink(),
    "LR without HR": lambda data: (data / "HR" / "00001.png").unlink(),
    "LR with another name": lambda data: (data / "LR" / "00001x4.png").rename(data / "LR" / "other.png"),
    "two LR images of one name": lambda data: write_image(data / "LR" / "00001_x4.png"),
    "name that is not UTF-8": lambda data: cut(
        (data / "HR" / "00001.png").rename(data / "HR" / os.fsdecode(b"V\xf6gel.png")), 1000
    ),
    "truncated PNG": lambda data: cut(data / "HR" / "00001.png", 1000),
    "empty PNG": lambda data: cut(data / "LR" / "00001x4.png", 0),
    "text as PNG": lambda data: (data / "LR" / "00001x4.png").write_text("no image"),
    "folder as PNG": lambda data: ((data / "LR" / "00001x4.png").unlink(), (data / "LR" / "00001x4.png").mkdir()),
    "16-bit PNG": lambda data: write_image(data / "LR" / "00001x4.png", dtype=np.uint16),
    "PNG with alpha": lambda data: write_image(data / "LR" / "00001x4.png", (64, 64, 4)),
    "sizes that do not fit": lambda data: write_image(data / "LR" / "00001x4.png", (9, 9, 3)),
}


def state() -> dict[str, torch.Tensor]:
    """Return weights that fit NETWORK."""
    return {f"conv.{key}": value for key, value in nn.Conv2d(3, 48, 3, padding=1).state_dict().items()}


def encoded(kind: str, path: Path) -> bytes:
    """Return an image file's image in another format."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return cv2.imencode(kind, image)[1].tobytes()


def truncated(path: Path) -> None:
    """Write the beginning of a checkpoint."""
    torch.save(state(), path)
    cut(path, 500)


CHECKPOINTS: dict[str, Damage] = {  # kind: how the checkpoint is written
    "checkpoint that would run code": lambda path: torch.save({"w": Trap(path.with_name("ran"))}, path),
    "whole pickled module": lambda path: torch.save(nn.Conv2d(1, 1, 1), path),
    "truncated checkpoint": truncated,
    "text as checkpoint": lambda path: path.write_text("no weights"),
    "weights of another network": lambda path: torch.save({"other": torch.ones(1)}, path),
    "weights under another key": lambda path: torch.save({"epoch": 3, "net_g": state()}, path),
    "checkpoint without tensors": lambda path: torch.save({"epoch": 3}, path),
    "weights of another shape": lambda path: torch.save({**state(), "conv.bias": torch.ones(3)}, path),
}


def wrapped(**more: Any) -> Damage:
    """Return a function that writes the weights under `state_dict`, together with `more`."""
    return lambda path: torch.save({"state_dict": state(), **more}, path)


TAKEN = {  # kind: a checkpoint as other programs write it, which must be accepted here
    "keys with a prefix": lambda path: torch.save({f"module.{key}": value for key, value in state().items()}, path),
    "numbers of NumPy beside the weights": wrapped(epoch=np.float64(3.5), losses=np.ones(3)),
    "two state dicts": lambda path: torch.save({"params": state(), "params_ema": state()}, path),
    "safetensors": lambda path: safetensors.torch.save_file(state(), path),
}
LAYOUTS = {
    "DIV2K as downloaded": lambda data: (
        (data / "HR").rename(data / "DIV2K_valid_HR"),
        (data / "DIV2K_valid_LR_bicubic").mkdir(),
        (data / "LR").rename(data / "DIV2K_valid_LR_bicubic" / "X4"),
    ),
    "a benchmark of BasicSR": lambda data: (
        (data / "HR").rename(data / "GTmod12"),
        (data / "LR").rename(data / "LRbicx4"),
    ),
    "HR images alone": lambda data: shutil.rmtree(data / "LR"),
    "HR image that is a JPEG": lambda data: (data / "HR" / "00001.png").write_bytes(
        encoded(".jpg", data / "HR" / "00001.png")
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=natural, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only the broken inputs whose name holds this, no kills, nothing at once")
    parser.add_argument("--jobs", type=positive, default=1, help="broken inputs tried at once, where cores are idle")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parse(parser)
    choose_device(args.device)  # without a GPU, every trial would fail with this error and count as contained
    quick = (*QUICK, "--device", args.device)
    minutes, gib = LIMITS[args.device]
    limited = ("--time_limit", minutes, "--memory_limit", gib, *quick)
    with tempfile.TemporaryDirectory() as folder:
        failed = try_broken_input(Path(folder) / "broken", limited, args.only or "", args.jobs)
        if not args.only:
            failed += try_kills(Path(folder) / "kills", quick, args.kills, random.Random(args.seed))
            failed += try_at_once(Path(folder) / "at_once", quick)
    print(f"\n{failed} trials failed" if failed else "\nall trials passed")
    return min(failed, 1)


def run_eval(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run eval.py with captured output."""
    command = [sys.executable, ROOT / "eval.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")


def begin_eval(*arguments: object) -> subprocess.Popen[bytes]:
    """Start eval.py, whose output nobody reads."""
    command = [sys.executable, ROOT / "eval.py", *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def last_line(text: str) -> str:
    """Return the last line of a process's output, empty if there is none."""
    return (text.strip().splitlines() or [""])[-1]


def try_broken_input(folder: Path, limited: Words, only: str, jobs: int = 1) -> int:
    """Print a row per kind; return how many were not contained."""
    print("| broken input | contained | what the user is told |\n| --- | --- | --- |", flush=True)
    trials: list[tuple[str, dict[str, Any]]] = [(kind, {"model": changes}) for kind, changes in MODELS.items()]
    trials += [(kind, {"model": changes, "works": True}) for kind, changes in CHANGES.items()]
    trials += [(kind, {"damage": damage}) for kind, damage in DATA.items()]
    trials += [(kind, {"checkpoint": write}) for kind, write in CHECKPOINTS.items()]
    trials += [(kind, {"checkpoint": write, "works": True}) for kind, write in TAKEN.items()]
    trials += [(kind, {"damage": change, "works": True}) for kind, change in LAYOUTS.items()]
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        tries = {
            kind: pool.submit(_try, folder / str(number), limited, **trial)
            for number, (kind, trial) in enumerate(trials)
            if only in kind
        }
        for kind, one in tries.items():
            contained, told = one.result()
            failed += not contained
            print(f"| {kind} | {'yes' if contained else 'NO'} | {told} |", flush=True)
    return failed


def _try(
    folder: Path,
    limited: Words,
    model: dict[str, str] | None = None,
    damage: Damage | None = None,
    checkpoint: Damage | None = None,
    works: bool = False,
) -> tuple[bool, str]:
    data = make_data(folder / "data", 2)
    (folder / "team42_Net.py").write_text(
        NETWORK.format(**{"top": "", "constructor": "pass", "forward": "pass"} | (model or {}))
    )
    (checkpoint or (lambda path: torch.save(state(), path)))(folder / "w.pth")
    if damage:
        damage(data)
    results = folder / "results" / RECORDS_FILE
    results.parent.mkdir()
    store_record(results, "Earlier", EARLIER)
    words = ("--model_file", folder / "team42_Net.py", "--checkpoint", folder / "w.pth")
    result = run_eval("--isolated", *limited, "--data_dir", data, "--results", results.parent, *words)
    kept = read_results(results).get("Earlier") == EARLIER and not (folder / "ran").exists()
    clean = "Traceback" not in result.stdout + result.stderr
    if works:
        done = result.returncode == 0 and records_by_name(results)["Net"].is_complete
        return kept and clean and done, "nothing; its row is complete"
    if stopped := next(iter(read_incomplete(results).values()), None):
        told = stopped.incomplete_because
    else:
        told = last_line(result.stderr).removeprefix("error: ")
    return kept and clean and result.returncode != 0 and bool(told), told.replace(str(folder), "…").replace("|", "/")


def try_kills(folder: Path, quick: Words, kills: int, rng: random.Random) -> int:
    """Kill a measurement over 30 images repeatedly; return the number of failures: a wrong record, partial files."""
    data = make_data(folder / "data", 30)
    arguments = [*quick, "--runs", 2, "--data_dir", data, "--model_id", 7, "--results"]
    start, process, begun = time.monotonic(), begin_eval(*arguments, folder / "whole"), 0.0
    while process.poll() is None:
        if not begun and (folder / "whole" / RECORDS_FILE).exists():
            begun = time.monotonic() - start
        time.sleep(0.01)
    duration, passes = time.monotonic() - start, []
    for number in range(kills):
        process = begin_eval(*arguments, folder / "killed")
        time.sleep(rng.uniform(begun if number % 2 else 0, duration))
        process.send_signal(signal.SIGKILL)
        process.wait()
        record = read_incomplete(folder / "killed" / RECORDS_FILE).get(KILLED)
        passes.append(sum(map(len, record.runtime.runs)) if record else 0)
    last = run_eval(*arguments, folder / "killed")
    whole, killed = (read_results(folder / name / RECORDS_FILE)[KILLED] for name in ("whole", "killed"))
    keys = ("status", "model", "dataset", "images", "complexity")
    equal = last.returncode == 0 and all(getattr(whole, key) == getattr(killed, key) for key in keys)
    equal = equal and [len(run) for run in killed.runtime.runs] == [30, 30]
    leftovers = [path.name for path in (folder / "killed").iterdir() if path.name.endswith(".partial")]
    print(
        f"\n{kills} kills at 0 to {duration:.1f} s of an evaluation of 30 images, 2 runs each; passes on record after "
        f"each: {', '.join(map(str, passes))}; then one to the end, the last record in "
        f"{killed.runtime.parts} parts: {'equal' if equal else 'NOT EQUAL'} to the unbroken record, "
        f"timings aside; {len(leftovers)} partial files left"
    )
    return int(not equal) + len(leftovers)


def try_at_once(folder: Path, quick: Words) -> int:
    """Run four evaluations on one results file while reading it; return how many rows are missing or reads failed."""
    data = make_data(folder / "data", 10)
    results = folder / "results" / RECORDS_FILE
    ids = (7, 0, 126, 124)
    arguments = [*quick, "--data_dir", data, "--results", results.parent, "--model_id"]
    processes = [begin_eval(*arguments, model_id) for model_id in ids]
    reads = broken = 0
    while any(process.poll() is None for process in processes):
        if results.exists():
            reads += 1
            try:
                json.loads(results.read_text(encoding="utf-8"))
            except ValueError:
                broken += 1
        time.sleep(0.005)
    missing = {f"registry {model_id}" for model_id in ids} - read_results(results).keys()
    print(
        f"\n4 evaluations at once: {4 - len(missing)} rows of 4; {reads} reads meanwhile, {broken} of them unreadable"
    )
    return len(missing) + broken


if __name__ == "__main__":
    exit_on_harness_error(main)
