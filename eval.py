"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]"""

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from utils.datasets import SPLITS, open_dataset
from utils.environment import choose_device
from utils.errors import HarnessError, exit_on_harness_error
from utils.measurement import Plan, measure
from utils.registry import find_entry, load_model, read_registry
from utils.results import read_results, store_record, write_text
from utils.sample import default_data_dir
from utils.tables import latex_table, markdown_table, text_table


def main():
    args = parse()
    entries = read_registry()
    if args.model_id:
        entries = [find_entry(model_id, entries) for model_id in args.model_id]
    if args.checkpoint and len(entries) != 1:
        raise HarnessError("--checkpoint: needs exactly one --model_id, the model that it belongs to")
    device = choose_device(args.device)
    dataset = open_dataset(args.data_dir or default_data_dir(), args.dataset)
    print(f"Data: {dataset.label}, in {dataset.folder}")
    results = args.results / "results.json"
    read_results(results)  # a file that cannot be used is better known before the work than after it
    plan = Plan(args.runs, args.warmup, args.repeats)
    for entry in entries:
        loaded = load_model(entry, device, args.checkpoint)
        keep = args.save_images or not dataset.has_hr
        save_dir = args.results / "images" / entry.full_name if keep else None
        store = partial(store_record, results, entry.name)
        with tqdm(total=plan.passes(len(dataset.pairs)), desc=entry.name, unit="pass") as bar:
            measure(loaded, dataset, device, plan, save_dir, on_pass=bar.update, on_progress=store)
    write_views(args.results, results, entries)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_id", type=int, nargs="+", metavar="N", help="default: every model of the registry")
    parser.add_argument("--checkpoint", type=Path, help="weights to use instead of the registry's")
    parser.add_argument("--data_dir", type=Path, help="default: ../ if the challenge lies there, else the sample")
    parser.add_argument("--dataset", default="valid", choices=SPLITS, help="which of the challenge's folders")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs over the data set (default 5)")
    parser.add_argument("--warmup", type=positive, default=3, help="uncounted passes before the steady time")
    parser.add_argument("--repeats", type=positive, default=10, help="timed passes of the steady time")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--save_images", action="store_true", help="write restored images; always on without HR")
    return parser.parse_args()


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def write_views(folder, results, entries):
    """Write and print the table of the given models, as the results file now has them."""
    stored = read_results(results)
    records = [stored[entry.name] for entry in entries]
    for name, view in (("factsheet.txt", text_table), ("factsheet.md", markdown_table), ("factsheet.tex", latex_table)):
        write_text(folder / name, view(records))
    print(f"\n{text_table(records)}")
    print(f"Results: {results}; tables: {folder}/factsheet.txt, .md, .tex")


if __name__ == "__main__":
    exit_on_harness_error(main)
