"""Try to fake figures by dishonest models: python -m benchmarks.audit [--honest 20] [--sandbox auto] [--device cpu]

Method. Each trial is an `eval.py --model_file …` as a user would run it, on four images of 64 x 64 LR pixels, two runs.

1. Cheats: NanoSR with one way to fake a figure added, from `cheats.py`. A cheat is *named* if its row has a finding, or
   a reason instead of figures. It is *prevented* if its PSNR (within 0.01 dB), its times (at most a quarter faster) and
   its counts are the honest network's, nothing was written outside, and no process is left. Otherwise it is *missed*.
   A cheat that ends in its own exception is missed, too, since it says nothing about the audit.
2. Honest models: NanoSR in both forms, its ancestors, and files that do unusual but honest things, each measured
   --honest times; all rows must be clean.
3. From inside the sandbox: forbidden actions of a worker, and the system's error messages.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from benchmarks.audit.cheats import CHEATS, HONEST_FILES, Cheat, written
from benchmarks.memory import make_data
from benchmarks.robustness import last_line, run_eval
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import ROOT
from utils.isolation.sandbox import sandboxed, why_not
from utils.options import SANDBOX_MODES, natural, parse, positive
from utils.record import RECORDS_FILE, Record, records_by_name
from utils.results.tables import notes
from utils.zoo.registry import ModelEntry, read_registry

NANOSR = ROOT / "models" / "team07_NanoSR.py"
MEASURE = ("--runs", 2, "--warmup", 1, "--repeats", 5)
MEMORY_LIMIT_GIB = {"cpu": 4, "cuda": 16}
HONEST = ("NanoSR_train", "NanoSR_inference", "EFDN", "SPAN", "PAN", "PlainUSR")
PSNR_DB, TIME_RATIO = 0.01, 1.25  # how far from the honest network's a prevented cheat's figures may be
HONEST_AGAIN = 3  # times that the honest network is measured again before a cheat counts as missed
INSIDE = {  # forbidden action: its code
    "read an HR image": "open({hr!r}).read(1)",
    "read a file of the home folder": "open({home!r} + '/.profile')",
    "write to the project": "open({project!r} + '/written', 'w')",
    "write to the system": "open('/usr/written', 'w')",
    "open a socket to the network": "socket.create_connection(('192.0.2.1', 80), 2)",
    "signal the host": "os.kill({pid}, 0)",
    "see other processes": "assert len([p for p in os.listdir('/proc') if p.isdigit()]) > 2, 'sees its own alone'",
    "mount something": "raise OSError(*(lambda c: (c.mount(b'x', b'/tmp', b'tmpfs', 0, None), (ctypes.get_errno(),"
    " os.strerror(ctypes.get_errno())))[1])(ctypes.CDLL(None, use_errno=True)))",
}

GREEDY = {  # attack on the machine: its forward pass
    "fill the memory": "self.all = [torch.ones(2**26) for _ in range(10000)]; return honest(x)",
    "fork without end": "\nfor _ in range(10000):\n    if os.fork() == 0: time.sleep(300)\nreturn honest(x)",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--honest", type=natural, default=20, help="measurements of each honest model (default 20)")
    parser.add_argument("--busy", type=natural, default=0, metavar="N", help="busy loops beside the honest models")
    parser.add_argument("--sandbox", default="auto", choices=SANDBOX_MODES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=positive, default=1, help="cheats tried at once, where cores are idle")
    parser.add_argument("--only", help="only the cheats whose name holds this")
    args = parse(parser)
    print(f"Sandbox: {args.sandbox}; {why_not() or 'bubblewrap works here'}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder / "data", 4)
        failed = try_cheats(folder, data, args)
        with busy_loops(args.busy):
            failed += try_honest(folder, data, args)
        if args.sandbox != "off" and why_not() is None:
            failed += try_inside(folder, data, args)
    print(f"\n{failed} trials failed" if failed else "\nall trials passed")
    return min(failed, 1)


def try_cheats(folder: Path, data: Path, args: argparse.Namespace) -> int:
    """Print what became of each cheat; return how many were missed."""
    earlier = folder / "earlier"
    honest = measured(folder, data, earlier, NANOSR, "NanoSR_inference", args)
    if not honest.is_complete or findings_of(honest):
        raise HarnessError(f"the honest network is {honest.status}, {findings_of(honest)}; nothing to compare with")
    print("| what the file does | | what the row says |\n| --- | --- | --- |")
    missed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        trials = {
            name: pool.submit(try_cheat, folder / str(number), name, data, earlier, honest, args)
            for number, name in enumerate(CHEATS)
            if args.only is None or args.only in name
        }
        for name, trial in trials.items():
            outcome, words = trial.result()
            missed += outcome == "MISSED"
            print(f"| {name} | {outcome} | {words} |", flush=True)
    return missed


def try_cheat(
    folder: Path, name: str, data: Path, earlier: Path, honest: Record, args: argparse.Namespace
) -> tuple[str, str]:
    """Try a cheat in its own folder, with a copy of the earlier results; return its `verdict`."""
    shutil.copytree(earlier, folder / "earlier")
    before = (folder / "earlier" / RECORDS_FILE).read_bytes()
    file, outside, mark = folder / "team66_Cheat.py", folder / "outside", f"outlives-{folder.name}"
    paths = {"hr": data / "HR", "outside": outside, "earlier": folder / "earlier", "mark": mark}
    file.write_text(written(NANOSR.read_text(encoding="utf-8"), CHEATS[name], **paths), encoding="utf-8")
    record = measured(folder, data, folder / "results", file, "Cheat", args)
    left = outlived(mark)
    harm = [text for text, done in (
        ("wrote outside", outside.exists() or (folder / "earlier" / RECORDS_FILE).read_bytes() != before),
        ("left a process", left),
    ) if done]  # fmt: skip
    described = CHEATS[name].described
    outcome, words = verdict(record, honest, harm, described)
    for _ in range(HONEST_AGAIN):  # the machine may be faster now than when the honest network was measured
        if outcome != "MISSED" or harm:
            break
        honest = measured(folder, data, folder / "honest", NANOSR, "NanoSR_inference", args)
        outcome, words = verdict(record, honest, harm, described)
    return outcome, words


def measured(folder: Path, data: Path, results: Path, file: Path, class_name: str, args: argparse.Namespace) -> Record:
    """Return the record of a model file, complete or not."""
    weights = ROOT / "model_zoo" / "team07_NanoSR.pth"
    what = ("--model_file", file, "--checkpoint", weights, "--save_images", "--fresh")
    result = run_eval(*what, "--data_dir", data, "--results", results, *measure_words(args))
    name = "Cheat" if class_name == "Cheat" else "NanoSR"
    records = records_by_name(results / RECORDS_FILE)
    if name not in records:
        raise HarnessError(f"eval.py made no row of {file}: {last_line(result.stderr)}")
    return records[name]


def measure_words(args: argparse.Namespace) -> tuple[object, ...]:
    """Return the options with which every model here is measured."""
    limit = ("--memory_limit", MEMORY_LIMIT_GIB[args.device])
    return ("--sandbox", args.sandbox, "--device", args.device, *limit, *MEASURE)


def verdict(record: Record, honest: Record, harm: list[str], described: bool = False) -> tuple[str, str]:
    """Return (outcome, words for the table).

    The outcome is "prevented", "named", both, "described" where that suffices, or "MISSED".
    """
    findings = findings_of(record)
    if harm:
        return "MISSED", ", ".join(harm)
    if not record.is_complete:
        ran = not any(words in record.incomplete_because for words in ("fails on", "cannot build"))
        return "named" if ran else "MISSED", record.incomplete_because
    psnr = (record.psnr_db or 0.0) - (honest.psnr_db or 0.0)
    ratio = max(before / now for before, now in zip(times_ms(honest), times_ms(record), strict=True))
    same = abs(psnr) < PSNR_DB and ratio < TIME_RATIO and record.complexity == honest.complexity
    if findings:
        return "prevented and named" if same else "named", "; ".join(findings)
    as_computed = [note for note in notes([record]) if "as computed" in note]
    if described and as_computed:
        return "described", as_computed[0]
    words = f"clean: PSNR {psnr:+.3f} dB, {ratio:.2f} times as fast, {record.counts.flops / 1e9:.2f} G"
    return "prevented" if same else "MISSED", words


def findings_of(record: Record) -> list[str]:
    """Return the audit's findings, [] if there was no audit."""
    return record.audit.findings if record.audit else []


def times_ms(record: Record) -> tuple[float, float]:
    """Return a complete record's steady and protocol times [ms], as tables show them."""
    steady = record.runtime.trusted_steady
    assert steady is not None
    return steady.median_ms, record.runtime_ms or 0.0


def outlived(mark: str) -> bool:
    """Return whether a process of this name is left, and kill it."""
    left = [process for process in psutil.process_iter(["name"]) if process.info["name"] == mark]
    for process in left:
        process.kill()
    return bool(left)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep so many cores busy with other work."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def try_honest(folder: Path, data: Path, args: argparse.Namespace) -> int:
    """Print how often each honest model was clean; return how many rows were not."""
    print("\n| honest model | clean rows | of these, times not checked | findings |\n| --- | ---: | ---: | --- |")
    unclean, results = 0, folder / "honest"

    def registered(entry: ModelEntry) -> Record:
        arguments = ("--model_id", entry.id, "--isolated", "--data_dir", data, "--results", results, "--fresh")
        run_eval(*arguments, *measure_words(args))
        return records_by_name(results / RECORDS_FILE)[entry.name]

    def submitted(file: Path) -> Record:
        return measured(folder, data, results, file, "Cheat", args)

    trials: dict[str, Callable[[], Record]] = {
        entry.name: partial(registered, entry) for entry in read_registry() if entry.name in HONEST
    }
    for name, honest in HONEST_FILES.items():
        file = folder / f"{name.replace(' ', '_')}.py"
        file.write_text(written(NANOSR.read_text(encoding="utf-8"), honest), encoding="utf-8")
        trials[name] = partial(submitted, file)
    for name, trial in trials.items() if args.honest else ():
        findings, busy = [], 0
        for _ in range(args.honest):
            record = trial()
            status = [] if record.is_complete else [record.incomplete_because]
            if lines := [*status, *findings_of(record)]:
                findings.append("; ".join(lines))
            else:
                busy += record.audit is not None and record.audit.busy is not None
        unclean += len(findings)
        clean = args.honest - len(findings)
        print(f"| {name} | {clean} of {args.honest} | {busy} | {' / '.join(findings)} |", flush=True)
    return unclean


def try_inside(folder: Path, data: Path, args: argparse.Namespace) -> int:
    """Print the result of each action tried from inside the sandbox; return how many succeeded."""
    print("\n| tried from inside the sandbox | answer |\n| --- | --- |")
    file, through = folder / "inside.py", 0
    hr = str(next((data / "HR").iterdir()))
    for name, code in INSIDE.items():
        code = code.format(hr=hr, home=str(Path.home()), project=str(ROOT), pid=psutil.Process().pid)
        file.write_text(f"import ctypes, os, socket\n{code}\n", encoding="utf-8")
        run = subprocess.run(sandboxed([sys.executable, str(file)], [file]), capture_output=True, text=True)
        words = last_line(run.stderr) or "it went through"
        went = run.returncode == 0
        if went and name == "write to the project" and not (ROOT / "written").exists():
            went, words = False, "it wrote to its own /tmp, since the project lies below /tmp"
        through += went
        print(f"| {name} | {words} |", flush=True)
    source = NANOSR.read_text(encoding="utf-8")
    for name, code in GREEDY.items():
        (folder / "team66_Cheat.py").write_text(written(source, Cheat(forward=code)), encoding="utf-8")
        record = measured(folder, data, folder / "results", folder / "team66_Cheat.py", "Cheat", args)
        through += record.is_complete
        outcome = "complete" if record.is_complete else record.incomplete_because
        print(f"| {name} | {outcome} |", flush=True)
    return through


if __name__ == "__main__":
    exit_on_harness_error(main)
