"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
from tqdm import tqdm

from utils.challenge.rules import get_edition
from utils.challenge.score_tables import score_markdown, score_records
from utils.data.datasets import SPLITS, open_dataset
from utils.data.sample import default_data_dir
from utils.errors import HarnessError, exit_on_harness_error
from utils.files import ROOT, write_text
from utils.measure.environment import choose_device
from utils.measure.measurement import Plan, empty_record, measure
from utils.measure.sharding import joined_shard
from utils.referee.isolation import run_isolated
from utils.results.record import RECORDS_FILE, read_incomplete, read_results, store_record
from utils.results.report import write_report
from utils.results.tables import latex_table, markdown_table, text_table
from utils.zoo.registry import entry_from_file, find_entry, find_variant, load_model, read_registry, register

MEMORY_SHARE = 0.9  # of the machine's, that an isolated model may take


def main():
    args = parse()
    with joined_shard() as shard:
        if args.isolated and shard.world > 1:
            raise HarnessError("--isolated: measures one model after the other; leave out torchrun or --isolated")
        return run(args, shard)


def run(args, shard):
    """Measure the models that the arguments name, and show them; return the exit status."""
    edition = get_edition(args.edition) if args.score else None
    entries = chosen_entries(args, edition)
    device = choose_device(args.device, shard.local_rank)
    if shard.is_first and not args.data_dir:
        default_data_dir()  # made by one process, before the others look for it
    shard.wait()
    dataset = open_dataset(args.data_dir or default_data_dir(), args.dataset)
    results = args.results / RECORDS_FILE
    read_results(results)  # a file that cannot be used is better known before the work than after it
    if shard.is_first:
        print(f"Data: {dataset.label}, in {dataset.folder}")
    if args.isolated:
        measure_isolated(entries, dataset, device, results, args)
    else:
        measure_here(entries, dataset, device, results, args, shard)
    if not shard.is_first or args.no_tables:
        return 0
    if args.register is not None:
        register(entries[0])  # now that it has been seen to run
    records = records_of(entries, results)
    write_views(args.results, records)
    complete = [record for record in records if record["status"] == "complete"]
    if edition:
        scores = score_markdown(score_records(complete, edition), edition)
        write_text(args.results / "scores.md", scores)
        print(scores)
    if args.report:
        write_report(args.report / "report.html", complete, dataset, args.results / "images")
        print(f"Report: {args.report / 'report.html'}")
    return int(len(complete) < len(records))


def measure_here(entries, dataset, device, results, args, shard):
    """Measure the models one after the other in this process; what stops one stops all."""
    plan = Plan(args.runs, args.warmup, args.repeats, args.workers)
    for entry in entries:
        loaded = load_model(entry, device, args.checkpoint if entry is entries[0] else None)
        keep = args.save_images or args.report or not dataset.has_hr
        save_dir = args.results / "images" / entry.full_name if keep else None
        store = partial(store_record, results, entry.name) if shard.is_first else lambda record: None
        earlier = None if args.fresh else read_incomplete(results).get(entry.name)
        passes = plan.passes(len(shard.part_of(dataset).pairs))
        with tqdm(total=passes, desc=entry.name, unit="pass", disable=not shard.is_first) as bar:
            measure(loaded, dataset, device, plan, save_dir, bar.update, store, shard, earlier)
        shard.wait()  # the first process still times its steady passes, and not beside the next model


def measure_isolated(entries, dataset, device, results, args):
    """Measure each model in a process of its own; one that fails costs its own row, which then holds the reason."""
    memory_limit = args.memory_limit * 2**30 if args.memory_limit else MEMORY_SHARE * psutil.virtual_memory().total
    for entry in tqdm(entries, unit="model"):
        log = args.results / "logs" / f"{entry.full_name}.log"
        before = read_results(results).get(entry.name)
        reason = run_isolated(command_for(entry, entries, args), log, 60 * args.time_limit, memory_limit)
        # A record of an earlier run is no result of this one, whose timings at least would differ.
        if reason is None and read_results(results).get(entry.name) == before:
            reason = "ended its process without a result"
        if reason:
            record = read_incomplete(results).get(entry.name) or empty_record(entry, dataset, device)
            store_record(results, entry.name, record | {"status": f"incomplete: {reason}"})
            tqdm.write(f"{entry.name}: {reason} (its output: {log})")


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


def chosen_entries(args, edition):
    """Return the models to measure, in order: those asked for, a variant's plain form, the edition's baseline."""
    registry = read_registry()
    if args.register is not None and not args.model_file:
        raise HarnessError("--register: needs --model_file, the model to write into the registry")
    if args.checkpoint and not args.model_file and len(args.model_id or ()) != 1:
        raise HarnessError("--checkpoint: needs exactly one --model_id, the model that it belongs to")
    if args.model_file:
        entries = [submitted_entry(args)]
        if args.register is not None:
            entries = [replace(entries[0], id=args.register)]
    elif args.model_id:
        entries = [find_entry(model_id, registry) for model_id in args.model_id]
    else:
        entries = [entry for entry in registry if not entry.variant]
    if args.trust_checkpoint:
        entries = [replace(entry, trust_checkpoint=True) for entry in entries]
    if args.backend or args.precision:
        chosen = [find_variant(entry, registry, args.backend, args.precision) for entry in entries]
        entries = [*chosen, *(entry for entry in entries if entry not in chosen)]
    if edition and edition.baseline not in {entry.name for entry in entries}:
        entries = [*entries, next(entry for entry in registry if entry.name == edition.baseline)]
    return entries


def submitted_entry(args):
    """Return the entry of a model given as a file; giving it is the consent to run it."""
    if not (args.class_name and args.checkpoint):
        raise HarnessError("--model_file: needs --class and --checkpoint too")
    try:
        arguments = json.loads(args.args)
    except ValueError as error:
        raise HarnessError(f"--args {args.args}: not JSON ({error}); write a list or an object") from error
    if not isinstance(arguments, (list, dict)):
        raise HarnessError(f"--args {args.args}: neither a list nor an object")
    return entry_from_file(
        args.model_file, args.class_name, arguments, args.checkpoint, args.data_range, args.state_key, args.lenient
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_id", type=int, nargs="+", metavar="N", help="default: all but the variants of others")
    parser.add_argument(
        "--backend",
        choices=("plain", "fast", "winograd", "triton"),
        help="how to run the models; the plain form is measured beside it",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="number type of the arithmetic")
    parser.add_argument("--model_file", type=Path, metavar="FILE.py", help="a model of no registry; its code is run")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="the class in --model_file")
    parser.add_argument("--args", default="[]", metavar="JSON", help="the class's arguments, a list or an object")
    parser.add_argument("--state_key", default="", help="where in --checkpoint the weights of --model_file lie")
    parser.add_argument("--data_range", type=float, default=1.0, help="of --model_file's input and output")
    parser.add_argument("--lenient", action="store_true", help="load --model_file's weights with strict=False")
    parser.add_argument("--register", type=int, metavar="ID", help="write --model_file into the registry under this id")
    parser.add_argument("--checkpoint", type=Path, help="weights to use instead of the registry's")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle more than tensors; that may run the author's code"
    )
    parser.add_argument("--data_dir", type=Path, help="default: ../ if the challenge lies there, else the sample")
    parser.add_argument("--dataset", default="valid", choices=SPLITS, help="which of the challenge's folders")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs over the data set (default 5)")
    parser.add_argument("--warmup", type=positive, default=3, help="uncounted passes before the steady time")
    parser.add_argument("--repeats", type=positive, default=10, help="timed passes of the steady time")
    parser.add_argument("--workers", type=int, help="threads that read and judge meanwhile (default: 8, on a CPU 0)")
    parser.add_argument("--score", action="store_true", help="score against the edition's baseline, measured with them")
    parser.add_argument("--edition", type=int, default=2025, help="whose rules and baseline (default 2025)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page of tables, plots and crops there")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--save_images", action="store_true", help="write restored images; always on without HR")
    parser.add_argument("--fresh", action="store_true", help="start anew where an earlier measurement was stopped")
    parser.add_argument(
        "--isolated", action="store_true", help="each model in its own process; a bad one costs its row"
    )
    parser.add_argument(
        "--time_limit", type=float, default=60, metavar="MINUTES", help="per isolated model (default 60)"
    )
    parser.add_argument("--memory_limit", type=float, metavar="GIB", help="per isolated model (default: 0.9 of all)")
    parser.add_argument("--no_tables", action="store_true", help="measure and store only")
    return parser.parse_args()


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def records_of(entries, results):
    """Return the models' records, in order; what did not end well stands under "incomplete"."""
    complete, incomplete = read_results(results), read_incomplete(results)
    return [incomplete.get(entry.name) or complete[entry.name] for entry in entries]


def write_views(folder, records):
    """Write the table of the records in three forms, and print it."""
    for name, view in (("factsheet.txt", text_table), ("factsheet.md", markdown_table), ("factsheet.tex", latex_table)):
        write_text(folder / name, view(records))
    print(f"\n{text_table(records)}")
    print(f"Results: {folder / RECORDS_FILE}; tables: {folder}/factsheet.txt, .md, .tex")


if __name__ == "__main__":
    exit_on_harness_error(main)
