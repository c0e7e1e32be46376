"""Measuring models that may do anything, each in a process of its own: one that fails costs its own row."""

import sys

import psutil

from utils.evaluate.measurement import empty_record
from utils.files import ROOT
from utils.referee.isolation import run_isolated
from utils.results.record import read_incomplete, read_results, store_record

MEMORY_SHARE = 0.9  # of the machine's, that an isolated model may take


def measure_isolated(entries, dataset, device, results, args):
    """Measure each model by an eval.py of its own; yield (entry, reason, log), where `reason` is None if all went well.

    `args` are eval.py's. The row of one that fails holds the reason.
    """
    memory_limit = args.memory_limit * 2**30 if args.memory_limit else MEMORY_SHARE * psutil.virtual_memory().total
    for entry in entries:
        log = args.results / "logs" / f"{entry.full_name}.log"
        before = read_results(results).get(entry.name)
        reason = run_isolated(command_for(entry, entries, args), log, 60 * args.time_limit, memory_limit)
        # A record of an earlier run is no result of this one, whose timings at least would differ.
        if reason is None and read_results(results).get(entry.name) == before:
            reason = "ended its process without a result"
        if reason:
            record = read_incomplete(results).get(entry.name) or empty_record(entry, dataset, device)
            store_record(results, entry.name, record | {"status": f"incomplete: {reason}"})
        yield entry, reason, log


def command_for(entry, entries, args):
    """The command that measures one model only and shows nothing."""
    words = [sys.executable, ROOT / "eval.py", "--no_tables"]
    for name in ("data_dir", "dataset", "runs", "warmup", "repeats", "workers", "device", "results"):
        if getattr(args, name) is not None:
            words += [f"--{name}", getattr(args, name)]
    words += ["--save_images"] * bool(args.save_images or args.report)
    words += ["--fresh"] * args.fresh + ["--trust-checkpoint"] * args.trust_checkpoint
    if entry is entries[0] and args.checkpoint:
        words += ["--checkpoint", args.checkpoint]
    if entry is not entries[0] or not args.model_file:
        return [*words, "--model_id", entry.id]
    words += ["--model_file", args.model_file, "--class", args.class_name, "--args", args.args]
    return [*words, "--state_key", args.state_key, "--data_range", args.data_range, *["--lenient"] * args.lenient]
