"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]"""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from utils.arguments import add_model_file, chosen_entries, natural, positive
from utils.challenge.rules import get_edition
from utils.challenge.score_tables import score_markdown, score_records
from utils.data.datasets import SPLITS, open_dataset
from utils.data.sample import default_data_dir
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.measurement import Plan, measure
from utils.evaluate.runner import Runner
from utils.evaluate.sharding import joined_shard
from utils.files import write_text
from utils.measure.environment import choose_device
from utils.referee.rows import measure_isolated
from utils.results.record import RECORDS_FILE, current_records, read_incomplete, read_results, store_record
from utils.results.report import write_report
from utils.results.tables import text_table, write_tables
from utils.zoo.registry import load_model, register


def main():
    args = parse()
    with joined_shard() as shard:
        if args.isolated and shard.world > 1:
            raise HarnessError("--isolated: measures one model after the other; leave out torchrun or --isolated")
        return run(args, shard)


def run(args, shard):
    """Measure the models that the arguments name, and show them; return the exit status."""
    edition = get_edition(args.edition) if args.score else None
    entries = chosen_entries(args, edition and edition.baseline)
    device = choose_device(args.device, shard.local_rank)
    dataset = open_data(args, shard)
    results = args.results / RECORDS_FILE
    read_results(results)  # a file that cannot be used is better known before the work than after it
    if args.isolated:
        measure_apart(entries, dataset, device, results, args)
    else:
        measure_here(entries, dataset, device, results, args, shard)
    if not shard.is_first or args.no_tables:
        return 0
    if args.register is not None:
        register(entries[0])  # now that it has been seen to run
    return show(current_records(results, [entry.name for entry in entries]), dataset, edition, args)


def open_data(args, shard):
    """Open the data that the arguments name, by default the sample, which the first process makes."""
    if shard.is_first and not args.data_dir:
        default_data_dir()
    shard.wait()
    dataset = open_dataset(args.data_dir or default_data_dir(), args.dataset)
    if shard.is_first:
        print(f"Data: {dataset.label}, in {dataset.folder}")
    return dataset


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
            measure(Runner(loaded, device), dataset, plan, save_dir, bar.update, store, shard, earlier)
        shard.wait()  # the first process still times its steady passes, and not beside the next model


def measure_apart(entries, dataset, device, results, args):
    """Measure each model in a process of its own; one that fails costs its own row, which then holds the reason."""
    rows = measure_isolated(entries, dataset, device, results, args)
    for entry, reason, log in tqdm(rows, total=len(entries), unit="model"):
        if reason:
            tqdm.write(f"{entry.name}: {reason} (its output: {log})")


def show(records, dataset, edition, args):
    """Write and print the views of the records; return the exit status, 1 if a model has no complete one."""
    write_tables(args.results, records)
    print(f"\n{text_table(records)}")
    print(f"Results: {args.results / RECORDS_FILE}; tables: {args.results}/factsheet.txt, .md, .tex")
    complete = [record for record in records if record["status"] == "complete"]
    if edition:
        scores = score_markdown(score_records(complete, edition), edition)
        write_text(args.results / "scores.md", scores)
        print(scores)
    if args.report:
        write_report(args.report / "report.html", complete, dataset, args.results / "images")
        print(f"Report: {args.report / 'report.html'}")
    return int(len(complete) < len(records))


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_id", type=int, nargs="+", metavar="N", help="default: all but the variants of others")
    parser.add_argument(
        "--backend",
        choices=("plain", "fast", "winograd", "triton"),
        help="how to run the models; the plain form is measured beside it",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="number type of the arithmetic")
    add_model_file(parser)
    parser.add_argument("--register", type=int, metavar="ID", help="write --model_file into the registry under this id")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle more than tensors; that may run the author's code"
    )
    parser.add_argument("--data_dir", type=Path, help="default: ../ if the challenge lies there, else the sample")
    parser.add_argument("--dataset", default="valid", choices=SPLITS, help="which of the challenge's folders")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs over the data set (default 5)")
    parser.add_argument("--warmup", type=natural, default=3, help="uncounted passes before the steady time")
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


if __name__ == "__main__":
    exit_on_harness_error(main)
