"""The organizers' command: python test_demo.py --data_dir D --save_dir S --model_id N [--include_test] [--ssim]"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.challenge.organizers_files import (
    complexity_results,
    image_line,
    merge_results,
    read_challenge_results,
    split_results,
    write_results_txt,
)
from utils.data.datasets import Dataset, open_dataset
from utils.data.sample import default_data_dir
from utils.errors import HarnessError, exit_on_harness_error
from utils.evaluate.evaluation import default_workers, evaluate, largest_lr
from utils.evaluate.runner import Runner
from utils.files import writing
from utils.measure.environment import choose_device
from utils.measure.memory import measure_peak_mib, reset_peak
from utils.options import SPLITS, add_device, command_line, parse
from utils.progress import progress
from utils.record import mean
from utils.zoo.registry import LoadedModel, find_entry, load_model, read_registry, with_checkpoint

LOG_NAME = "NTIRE-EfficientSR.log"


def main() -> None:
    args = arguments()
    device = choose_device(args.device)
    data_dir = args.data_dir or default_data_dir()
    splits = SPLITS if args.include_test else SPLITS[:1]
    datasets = [open_dataset(data_dir, split) for split in splits]
    loaded = load_entry(args, device)
    if loaded.weights.missing_weights:
        raise HarnessError(f"{loaded.weights.missing_weights}; eval.py times and counts it without")
    # Like the organizers' program, a run with --save_dir leaves its results in the working directory.
    out_dir = Path(".") if args.save_dir else Path("results")
    read_challenge_results(out_dir / "results.json")  # one that cannot be used is better known before the work
    log = open_log(out_dir / LOG_NAME)
    log.info("%s on %s", loaded.entry.full_name, device)
    values: dict[str, Any] = {}
    for note in dict.fromkeys(note for dataset in datasets for note in dataset.notes):
        log.info("note: %s", note)
    for dataset in datasets:
        values |= run(loaded, dataset, device, args, log)
    values |= complexity_results(Runner(loaded, device).count())
    models = merge_results(out_dir / "results.json", loaded.entry.full_name, values)
    write_results_txt(out_dir / "results.txt", models, args.include_test)
    log.info("results: %s, %s", out_dir / "results.json", out_dir / "results.txt")


def arguments() -> argparse.Namespace:
    parser = command_line(
        "test_demo.py",
        "The organizers' command: measure one model, and write results.json and results.txt as theirs does.",
        "--data_dir DIR --save_dir out --model_id 7",
        "--data_dir DIR --save_dir out --model_id 7 --include_test --ssim",
    )
    parser.add_argument(
        "--data_dir", type=Path, help="default: ../ if the challenge's folders are there, else the sample"
    )
    parser.add_argument(
        "--save_dir",
        type=Path,
        help="folder of restored images; results.json goes to the working directory (default: both to results/)",
    )
    parser.add_argument("--model_id", type=int, default=7, help="id in the registry (default %(default)s)")
    parser.add_argument("--include_test", action="store_true", help="measure the test images, too")
    parser.add_argument("--ssim", action="store_true", help="compute SSIM beside PSNR")
    parser.add_argument("--save_images", action="store_true", help="write restored images; always on without HR images")
    parser.add_argument("--checkpoint", type=Path, help="use these weights instead of the registry's")
    add_device(parser)
    return parse(parser)


def select_model(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, str, float, None]:
    """Return (model, name, data_range, tile) for `args.model_id`, as the organizers' function does; tile is None."""
    loaded = load_entry(args, device)
    return loaded.model, loaded.entry.full_name, loaded.entry.data_range, None


def load_entry(args: argparse.Namespace, device: torch.device) -> LoadedModel:
    """Load the registry's model `args.model_id`."""
    entry = find_entry(args.model_id, read_registry())
    return load_model(with_checkpoint(entry, getattr(args, "checkpoint", None)), device)


def run(
    loaded: LoadedModel, dataset: Dataset, device: torch.device, args: argparse.Namespace, log: logging.Logger
) -> dict[str, Any]:
    """Evaluate one split, log a line per image, and return its part of the results."""
    log.info("%s: %s, in %s", dataset.split, dataset.label, dataset.folder)
    save_dir = None
    if args.save_images or not dataset.has_hr:
        save_dir = (args.save_dir or Path("results")) / loaded.entry.full_name / dataset.split
        log.info("restored images: %s", save_dir)
    reset_peak(device)
    images = []
    results = evaluate(Runner(loaded, device), dataset, args.ssim, save_dir, default_workers(device))
    for result in progress(results, total=len(dataset.pairs), desc=dataset.split, unit="image"):
        images.append(result)
        log.info(image_line(result))
    largest = largest_lr(dataset, [image.lr_pixels for image in images])
    memory = measure_peak_mib(loaded, (1, 3, *largest.shape[:2]), device)
    summary = [f"runtime {mean(image.runtime_ms for image in images):.2f} ms ({device.type})"]
    if dataset.has_hr:
        summary.append(f"PSNR {mean(image.psnr for image in images):.4f} dB")
        if args.ssim:
            summary.append(f"SSIM {mean(image.ssim for image in images):.4f}")
    log.info("%s average: %s", dataset.split, ", ".join(summary))
    return split_results(dataset.split, images, memory, args.ssim)


def open_log(path: Path) -> logging.Logger:
    """Return a logger to the terminal and to `path`."""
    with writing(path, "run from another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [
            logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"),
            logging.StreamHandler(),
        ]
    logging.basicConfig(
        level=logging.INFO,
        force=True,
        handlers=handlers,
        format="%(asctime)s.%(msecs)03d : %(message)s",
        datefmt="%y-%m-%d %H:%M:%S",
    )
    return logging.getLogger("test_demo")


if __name__ == "__main__":
    exit_on_harness_error(main)
