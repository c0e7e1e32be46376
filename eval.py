"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]

With --show nothing is measured: the views are made of what --results holds.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from utils.arguments import add_model_file, amount, chosen_entries, natural, positive
from utils.challenge.rules import get_edition
from utils.challenge.score_tables import score_markdown, score_records
from utils.data.datasets import SPLITS, open_dataset
from utils.data.images import read_rgb, to_tensor
from utils.data.sample import default_data_dir
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.fastest import FASTEST_FILE, fastest_form
from utils.evaluate.measurement import ALONE, Plan
from utils.evaluate.sharding import joined_shard
from utils.files import write_text
from utils.measure.environment import choose_device
from utils.measure.precision import cost_line
from utils.progress import progress
from utils.referee.process import Limits
from utils.referee.rows import Row, Rules
from utils.referee.sandbox import MODES, choose_sandbox
from utils.results.record import RECORDS_FILE, current_records, read_incomplete, read_results, with_distinct_names
from utils.results.report import write_report
from utils.results.tables import write_tables
from utils.zoo.registry import Origin, register


def main():
    args = parse()
    if args.show:
        return show(stored_records(args), args)
    with joined_shard() as shard:
        if (args.isolated or args.repository) and shard.world > 1:
            raise HarnessError("--isolated: measures one model after the other; leave out torchrun or --isolated")
        return run(args, shard)


def run(args, shard):
    """Measure the models that the arguments name, and show them; return the exit status."""
    edition = get_edition(args.edition) if args.score else None
    device = choose_device(args.device, shard.local_rank)
    dataset = open_data(args, shard)

    def fastest(entry, registry):
        return fastest_here(entry, registry, dataset, device, args, shard)

    entries = chosen_entries(args, edition and edition.baseline_id, fastest)
    results = args.results / RECORDS_FILE
    read_results(results)  # a file that cannot be used is better known before the work than after it
    if shard.is_first and any(runs_apart(entry, args) for entry in entries):
        print(f"Strangers' code: {choose_sandbox(args.sandbox)[1]}")
    for precision in {entry.variant["precision"] for entry in entries if entry.variant.get("backend") == "fast"}:
        if shard.is_first and (line := cost_line(device, precision)):
            print(line)
    keys = [measure_entry(entry, entries, dataset, device, results, args, shard) for entry in entries]
    if not shard.is_first:
        return 0
    records = current_records(results, keys)
    if args.register is not None and records[0]["status"] == "complete":
        register(entries[0])  # now that it has been seen to run
    return show(records, args, dataset)


def stored_records(args):
    """Return the records that --show means: all that there are, or the registry's of --model_id and the baseline."""
    if args.model_file or args.repository or args.backend or args.precision or args.register is not None:
        raise HarnessError("--show: measures nothing, so it takes models by --model_id alone, or all there are")
    results = args.results / RECORDS_FILE
    records = current_records(results, read_results(results) | read_incomplete(results))
    if not records:
        raise HarnessError(f"{results}: holds no results; leave out --show to measure some")
    if not args.model_id:
        return records
    registered = [record for record in records if record["model"]["origin"] == Origin.REGISTRY]
    if unknown := set(args.model_id) - {record["model"]["id"] for record in registered}:
        raise HarnessError(f"--model_id {min(unknown)}: not in {results}; leave out --show to measure it")
    wanted = {*args.model_id, get_edition(args.edition).baseline_id if args.score else None}
    return [record for record in registered if record["model"]["id"] in wanted]


def open_data(args, shard=ALONE):
    """Open the data that the arguments name, by default the sample, which the first process makes."""
    if shard.is_first and not args.data_dir:
        default_data_dir()
    shard.wait()
    dataset = open_dataset(args.data_dir or default_data_dir(), args.dataset)
    if shard.is_first:
        print(f"Data: {dataset.label}, in {dataset.folder}")
    return dataset


def fastest_here(entry, registry, dataset, device, args, shard):
    """Return the form of a model that the first process finds the fastest on the data's first image."""
    choice = None
    if shard.is_first:
        lr = to_tensor(read_rgb(dataset.pairs[0].lr), entry.data_range)
        choice = fastest_form(entry, registry, args.precision, lr, device, args.results / FASTEST_FILE)
        print(f"{entry.name}: {choice}")
    return shard.from_first(choice and choice.entry)


def measure_entry(entry, entries, dataset, device, results, args, shard):
    """Measure one model into the results; return the key of its row.

    A stranger's model runs in a process of its own. What stops one of several models costs its row; under torchrun it
    stops all, for other processes may be waiting for this one, and end with it.
    """
    rules = rules_of(entry, args) if runs_apart(entry, args) else None
    keep = args.save_images or args.report or not dataset.has_hr
    save_dir = args.results / "images" / entry.slug if keep else None
    plan = Plan(args.runs, args.warmup, args.repeats, args.workers)
    row = Row(entry, results, args.fresh)
    if name := row.measured_before(rules, device, dataset, plan, save_dir):
        tqdm.write(f"{name}: measured before, unchanged")
        return entry.key
    passes = plan.passes(len(shard.part_of(dataset).pairs))
    with progress(total=passes, desc=entry.name, disable=not shard.is_first) as bar:
        reason = row.measure(
            rules,
            device,
            dataset,
            plan,
            shard,
            save_dir=save_dir,
            on_pass=bar.update,
        )
    if reason:
        if rules:
            reason += f" (its output: {rules.logs})"
        several = args.isolated or args.repository or (len(entries) > 1 and not args.model_file)
        if not several or shard.world > 1:
            raise HarnessError(reason)
        tqdm.write(f"{row.name}: {reason}")
    shard.wait()  # the first process still times its steady passes, and not beside the next model
    return entry.key


def runs_apart(entry, args):
    """Return whether an entry's code runs in a process of its own: whatever is not the registry's does."""
    return args.isolated or entry.origin != Origin.REGISTRY


def rules_of(entry, args):
    """How a model is run that gets a process of its own."""
    memory = args.memory_limit * 2**30 if args.memory_limit else Limits.memory_bytes
    limits = Limits(60 * args.time_limit, memory)
    repository = args.repository if entry.origin == Origin.REPOSITORY else None
    return Rules(args.results / "logs", limits, args.sandbox, repository)


def show(records, args, dataset=None):
    """Write and print the views of the records; return the exit status, 1 if a model has no complete one.

    `dataset`, which a report shows images of, is opened here if none is given.
    """
    records = with_distinct_names(records)
    print(f"\n{write_tables(args.results, records)}")
    print(f"Results: {args.results / RECORDS_FILE}; tables: {args.results}/factsheet.txt, .md, .tex")
    complete = [record for record in records if record["status"] == "complete"]
    if args.report and complete:
        write_report(args.report / "report.html", complete, dataset or open_data(args), args.results / "images")
        print(f"Report: {args.report / 'report.html'}")
    if args.score:
        edition = get_edition(args.edition)
        scores = score_markdown(score_records(complete, edition))
        write_text(args.results / "scores.md", scores)
        print(scores)
    return int(len(complete) < len(records))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_id", type=int, nargs="+", metavar="N", help="default: all but the variants of others")
    parser.add_argument(
        "--backend",
        choices=("plain", "fast", "winograd", "amx", "triton", "auto"),
        help="how to run the models, auto: the fastest way here; the plain form is measured beside it",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="number type of the arithmetic")
    add_model_file(parser)
    parser.add_argument("--repository", type=Path, metavar="DIR", help="an organizers' checkout, whose models to take")
    parser.add_argument("--register", type=natural, metavar="ID", help="write --model_file to the registry as this id")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle more than tensors; that may run the author's code"
    )
    parser.add_argument("--data_dir", type=Path, help="default: ../ if the challenge lies there, else the sample")
    parser.add_argument("--dataset", default="valid", choices=SPLITS, help="which of the challenge's folders")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs over the data set (default 5)")
    parser.add_argument("--warmup", type=natural, default=3, help="uncounted passes before the steady time")
    parser.add_argument("--repeats", type=positive, default=10, help="timed passes of the steady time")
    parser.add_argument("--workers", type=natural, help="threads that read and judge meanwhile (default 8, on a CPU 0)")
    parser.add_argument("--score", action="store_true", help="score against the edition's baseline, measured with them")
    parser.add_argument("--edition", type=int, default=2025, help="whose rules and baseline (default 2025)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page of tables, plots and crops there")
    parser.add_argument("--show", action="store_true", help="measure nothing; make the views of what --results holds")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--save_images", action="store_true", help="write restored images; always on without HR")
    parser.add_argument("--fresh", action="store_true", help="start anew where an earlier measurement was stopped")
    parser.add_argument(
        "--isolated", action="store_true", help="each model in its own process; a bad one costs its row"
    )
    parser.add_argument(
        "--time_limit", type=amount, default=60, metavar="MINUTES", help="per isolated model (default 60)"
    )
    parser.add_argument("--memory_limit", type=amount, metavar="GIB", help="per isolated model (default: 0.9 of all)")
    parser.add_argument("--sandbox", default="auto", choices=MODES, help="for strangers' code (default: auto)")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_harness_error(main)
