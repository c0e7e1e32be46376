"""The files that the organizers' `test_demo.py` writes: results.json, results.txt and the lines of its log."""

from pathlib import Path
from typing import Any

from utils.errors import HarnessError
from utils.evaluate.evaluation import ImageResult
from utils.files import locked, read_json, write_json, write_text
from utils.record import Counts, mean

PREFIXES = {"valid": "Val", "test": "Test"}


def image_line(result: ImageResult) -> str:
    """Return a log line such as `0801.png - PSNR: 29.35 dB; SSIM: 0.8465.`; a quality value may be missing."""
    figures = []
    if result.psnr is not None:
        figures.append(f"PSNR: {result.psnr:.2f} dB")
    if result.ssim is not None:
        figures.append(f"SSIM: {result.ssim:.4f}")
    return f"{result.name} - {'; '.join(figures) or 'restored'}."


def split_results(split: str, images: list[ImageResult], memory_mib: float | None, with_ssim: bool) -> dict[str, Any]:
    """Return one split's part of a model's object in results.json: `valid_runtime` [ms], `valid_memory` [MiB], …

    Without HR images the quality lists hold nulls and their averages are null.
    """
    values: dict[str, Any] = {
        "runtime": [image.runtime_ms for image in images],
        "ave_runtime": mean(image.runtime_ms for image in images),
        "memory": memory_mib,
        "psnr": [image.psnr for image in images],
        "ave_psnr": mean(image.psnr for image in images),
    }
    if with_ssim:
        values |= {"ssim": [image.ssim for image in images], "ave_ssim": mean(image.ssim for image in images)}
    return {f"{split}_{key}": value for key, value in values.items()}


def complexity_results(complexity: Counts) -> dict[str, Any]:
    """Return the static part of a model's object: activations [M], convolutions, FLOPs [G], parameters [M]."""
    return {
        "activations": complexity.activations / 1e6,
        "num_conv": complexity.convs,
        "flops": complexity.flops / 1e9,
        "num_parameters": complexity.params / 1e6,
    }


def read_challenge_results(path: Path) -> dict[str, Any]:
    """Return {full name: object} of a results.json, empty without a file. Raise HarnessError for any other file."""
    models = read_json(path) or {}
    if not all(isinstance(values, dict) and "flops" in values for values in models.values()):
        raise HarnessError(f"{path}: not a results file of test_demo.py; move it away")
    return models


def merge_results(path: Path, full_name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Add a model's object to results.json, keeping the others, and return all of them."""
    with locked(path):
        models = read_challenge_results(path)
        models[full_name] = values
        write_json(path, models)
    return models


def write_results_txt(path: Path, models: dict[str, Any], include_test: bool) -> None:
    """Write the organizers' tab-separated table of the models in results.json that have all splits shown."""
    splits = ["valid", "test"] if include_test else ["valid"]
    header = ["Model", *(f"{PREFIXES[split]} PSNR" for split in splits)]
    header += [f"{PREFIXES[split]} Time [ms]" for split in splits]
    header += ["Ave Time [ms]"] if include_test else []
    header += ["Params [M]", "FLOPs [G]", "Acts [M]", "Mem [M]", "Conv"]
    lines = ["\t".join(header)]
    for name, values in models.items():
        if all(f"{split}_ave_runtime" in values for split in splits):
            lines.append("\t".join(_row(name, values, splits)))
    write_text(path, "\n".join(lines) + "\n")


def _row(name: str, values: dict[str, Any], splits: list[str]) -> list[str]:
    times = [values[f"{split}_ave_runtime"] for split in splits]
    if len(splits) > 1:
        times.append(mean(times))
    cells = [*(values[f"{split}_ave_psnr"] for split in splits), *times]
    memory = max(values[f"{split}_memory"] for split in splits)
    return [
        name,
        *(_decimals(cell, 2) for cell in cells),
        _decimals(values["num_parameters"], 3),
        _decimals(values["flops"], 2),
        _decimals(values["activations"], 2),
        _decimals(memory, 2),
        str(values["num_conv"]),
    ]


def _decimals(value: float | None, count: int) -> str:
    return "-" if value is None else f"{value:.{count}f}"
