"""Measure memory against the number of images: python -m benchmarks.memory [--images 200 2000] [--device auto]

Method. Photographs of the sample are cut into HR images of one size; a data folder of N images holds them in turn, as
links. One process per N measures NanoSR over it as eval.py does: decoding ahead, PSNR, SSIM, restored images written,
the record stored as it grows. The table shows the process's peak resident memory up to the last image, minus its memory
before the first one, and the wall time until then; the ratio is to the smallest N. Work that eval.py does once per
model after the images, above all counting operators, is left out: it takes more memory, but the same for every N.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from utils.data.datasets import open_dataset
from utils.data.images import bicubic_downscale, read_rgb, write_png
from utils.data.sample import ensure_sample
from utils.errors import exit_on_harness_error
from utils.evaluate.measurement import MeasurementPlan, measure
from utils.evaluate.runner import Runner
from utils.measure.environment import choose_device, describe_environment, machine_line
from utils.measure.memory import peak_rss_bytes
from utils.options import add_device, natural, parse, positive
from utils.record import RECORDS_FILE, Record
from utils.resumable import ResumableMeasurement
from utils.zoo.registry import find_entry, load_model, read_registry

SIDE = 256  # HR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, nargs="+", default=[200, 2000])
    parser.add_argument("--model_id", type=int, default=7)
    parser.add_argument("--workers", type=natural, default=2, help="threads that read, score and write meanwhile")
    add_device(parser)
    args = parse(parser)
    environment = describe_environment(choose_device(args.device))
    print(f"{machine_line(environment)}, {environment.date[:10]}\n")
    print(f"| images of {SIDE} x {SIDE} | peak growth [MiB] | ratio | s |\n| ---: | ---: | ---: | ---: |")
    first = None
    for count in sorted(args.images):
        # An executor: measuring starts a separate process, which the processes of a Pool may not do.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            growth_mib, seconds = pool.submit(_evaluate, count, args.model_id, args.workers, args.device).result()
        first = first or growth_mib
        print(f"| {count} | {growth_mib:.0f} | {growth_mib / first:.2f} | {seconds:.0f} |", flush=True)


def _evaluate(count: int, model_id: int, workers: int, device_name: str) -> tuple[float, float]:
    device = choose_device(device_name)
    loaded = load_model(find_entry(model_id, read_registry()), device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = open_dataset(make_data(folder / "data", count))
        before, start = psutil.Process().memory_info().rss, time.perf_counter()

        peaks = []  # after each image: bytes, s

        plan = MeasurementPlan(1, 1, 1, workers)
        stored = ResumableMeasurement(loaded.entry, folder / RECORDS_FILE, None, device, dataset, plan)

        def store(record: Record) -> None:
            stored.store(record)
            peaks.append((peak_rss_bytes(), time.perf_counter()))

        measure(Runner(loaded, device), dataset, plan, folder / "images", on_progress=store)
        peak, end = peaks[count - 1]
        return (peak - before) / 2**20, end - start


def make_data(folder: Path, count: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Write `count` pairs of HR images of `size` as HR/ and LR/, all but the first few as links to those.

    They are cut from the sample's photographs, which are extended by mirroring where they are too small. Return the
    folder.
    """
    crops = []
    for pair in open_dataset(ensure_sample()).pairs:
        image = read_rgb(pair.hr_path)
        missing = [max(wanted - there, 0) for wanted, there in zip(size, image.shape, strict=False)]
        image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")
        for top in range(0, image.shape[0] - size[0] + 1, size[0]):
            crops.append(image[top : top + size[0], : size[1]])
    for number in range(count):
        hr, lr = folder / "HR" / f"{number:05}.png", folder / "LR" / f"{number:05}x4.png"
        if number < len(crops):
            write_png(hr, crops[number])
            write_png(lr, bicubic_downscale(crops[number]))
        else:
            hr.hardlink_to(folder / "HR" / f"{number % len(crops):05}.png")
            lr.hardlink_to(folder / "LR" / f"{number % len(crops):05}x4.png")
    return folder


if __name__ == "__main__":
    exit_on_harness_error(main)
