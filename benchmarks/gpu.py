"""Run all checks that need a GPU, in one command: python -m benchmarks.gpu --out OUT [--only tests speed]

Method. The parts run one after the other, each in its own process group, as a user would run them. A part that fails,
hangs or runs out of time does not affect the others. The output of a part goes to OUT/PART.txt as it appears, and
OUT/summary.md says how each part ended. Use --only to run parts that did not fit into --time_limit. The data are HR
images of DIV2K size made from the sample's photographs, so that no data set is needed. Their times are those of real
images; their PSNR means nothing.

`--tiny` runs the same commands with the smallest settings, and `--device cpu` runs them without a GPU, so that a rented
hour is not spent on typos. Tiny parts have no separate time limits, since they may run on a busy machine.
"""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.memory import make_data
from benchmarks.robustness import last_line
from utils.errors import exit_on_harness_error
from utils.files import ROOT, write_text
from utils.measure.environment import choose_device, describe_environment, machine_line, processors
from utils.options import amount, parse

SIZE, TINY_SIZE = (1356, 2040), (128, 192)  # of the HR images
Words = tuple[object, ...]
MODELS = (107, 7, 0, 126, 124, 120)  # NanoSR in both forms, and its ancestors


@dataclass(frozen=True)
class Part:
    """One command, by its Python arguments, and the longest that it may take."""

    name: str
    minutes: float
    arguments: Words


def parts(data: Path, results: Path, device: str, tiny: bool) -> tuple[Part, ...]:
    """Return the parts, the most important first, since time may run out before the last ones."""
    models = MODELS[:2] if tiny else MODELS
    evaluate: Words = ("eval.py", "--data_dir", data, "--results", results, "--device", device, "--model_id", *models)
    speed: Words = ("-m", "benchmarks.speed", "--data_dir", data, "--device", device)
    training: Words = ("-m", "benchmarks.training", "--device", device)
    audit: Words = ("-m", "benchmarks.audit", "--device", device)
    robustness: Words = ("-m", "benchmarks.robustness", "--device", device)
    isolation: Words = ("-m", "benchmarks.isolation", "--device", device)
    if tiny:
        evaluate += ("--runs", 1, "--warmup", 0, "--repeats", 1)
        speed += ("--images", 2, "--reference_images", 1, "--rounds", 1)
        training += ("--batch", 1, "--rounds", 1, "--warmup", 0)
        audit += ("--only", "slow clock", "--honest", 0, "--sandbox", "off")
        robustness += ("--only", "gives a list")
        isolation += ("--rounds", 1)
    else:
        speed += ("--images", 200, "--reference_images", 5)
        training += ("--batch", 64)
        jobs = ("--jobs", max(1, processors() * 3 // 4))
        audit += ("--honest", 1, *jobs)
        robustness += ("--kills", 3, *jobs)
    return (
        Part("tests", 3, ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_cuda.py")),
        Part("protocol", 2.5, evaluate),
        Part("speed", 3.5, speed),
        Part("training", 2, training),
        Part("isolation", 1, isolation),
        Part("robustness", 2.5, robustness),
        Part("audit", 5, audit),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time_limit", type=amount, default=9.5, metavar="MINUTES", help="of all parts together")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true")
    args = parse(parser)
    deadline = time.monotonic() + 60 * args.time_limit
    environment = describe_environment(choose_device(args.device))
    lines = [
        f"{machine_line(environment)}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, Python {platform.python_version()}, {environment.date}"
        f"{'; tiny settings, no figure counts' if args.tiny else ''}",
        "",
        "| part | ended | s |",
        "| --- | --- | ---: |",
    ]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", *((2, TINY_SIZE) if args.tiny else (200, SIZE)))
        for part in parts(data, Path(folder) / "results", args.device, args.tiny):
            if args.only and part.name not in args.only:
                continue
            start = time.monotonic()
            left = deadline - start
            ended = run(part, args.out / f"{part.name}.txt", left if args.tiny else min(60 * part.minutes, left))
            failed += ended != "well"
            lines.append(f"| {part.name} | {ended} | {time.monotonic() - start:.0f} |")
            write_text(args.out / "summary.md", "\n".join(lines) + "\n")
            print(lines[-1], flush=True)
    return min(failed, 1)


def run(part: Part, path: Path, seconds: float) -> str:
    """Run a part; return how it ended, "well" or what happened."""
    if seconds < 5:
        return "not begun: no time left"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, part.arguments)],
            stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = last_line(path.read_text(encoding="utf-8", errors="replace"))
    return "well" if status == 0 else f"status {status}: {last[:200].replace('|', '/')}"


if __name__ == "__main__":
    exit_on_harness_error(main)
