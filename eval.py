"""Measure models and print the factsheet table: python eval.py [--model_id N …] [--data_dir D]

With --show nothing is measured: the views are made of what --results holds.
"""

import argparse
from pathlib import Path

from utils.errors import exit_on_harness_error
from utils.options import SANDBOX_MODES, SPLITS, add_model_file, amount, natural, positive


def main():
    args = parse()
    from utils.measuring import (
        measure_or_show,  # which imports torch: --help and a mistyped option need not wait for it
    )

    return measure_or_show(args)


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
    parser.add_argument("--hr", type=Path, metavar="DIR", help="HR images, where they do not lie in a --data_dir")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="their LR images (default: made from them)")
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
    parser.add_argument("--sandbox", default="auto", choices=SANDBOX_MODES, help="for strangers' code (default: auto)")
    return parser.parse_args()


if __name__ == "__main__":
    exit_on_harness_error(main)
