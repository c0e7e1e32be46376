"""The results for the evaluation server: one flat zip of restored images and a readme.txt."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.data.datasets import Dataset, Pair, read_fitting_hr
from utils.data.images import write_png
from utils.errors import HarnessError
from utils.evaluate.evaluation import restore
from utils.evaluate.metrics import psnr, ssim
from utils.evaluate.runner import ModelRunner
from utils.files import read_json, replacing, write_json
from utils.measure.environment import describe_environment, machine_line
from utils.progress import progress
from utils.protocol import SCALE
from utils.submission.team import TeamFile
from utils.zoo.registry import sources_sha256

README = "readme.txt"
TIMES = "times.json"


@dataclass(frozen=True)
class ServerResults:
    """A written zip: `images` in it, and the mean PSNR [dB] and SSIM of its files where there are HR images."""

    path: Path
    images: int
    runtime_s: float
    psnr: float | None
    ssim: float | None


def write_results(
    runner: ModelRunner, dataset: Dataset, path: Path, team: TeamFile, keep_suffix: bool = False
) -> ServerResults:
    """Restore all LR images of a data set, write them into a zip, and read them back.

    Images are named like their LR files, without "x4" unless `keep_suffix` is set. Images of an interrupted run stay in
    a folder beside the zip. They are reused if code, weights, data and device are the same. Raise HarnessError if there
    are no weights, an image cannot be restored, or the zip does not have the expected contents.
    """
    if runner.weights.missing_weights:
        raise HarnessError(f"{runner.entry.name}: {runner.weights.missing_weights}; give weights by --checkpoint")
    folder = path.with_suffix("") / _digest(runner, dataset)
    times = dict(read_json(folder / TIMES) or {})
    for pair in progress(dataset.pairs, desc=runner.entry.name, unit="image"):
        name = server_name(pair, keep_suffix)
        if name in times and (folder / name).is_file():
            continue
        restored = restore(runner, pair.read_lr(), pair.name)
        write_png(folder / name, restored.sr)
        times[name] = restored.runtime_ms
        write_json(folder / TIMES, times)
    names = {server_name(pair, keep_suffix): pair for pair in dataset.pairs}
    runtime_s = float(np.mean([times[name] for name in names])) / 1000
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write(folder / name, name)
        archive.writestr(README, readme(runtime_s, runner.device.type == "cpu", team))
    scores = list(checked(path, names))
    known = [score for score in scores if score is not None]
    mean_psnr, mean_ssim = (float(np.mean([score[i] for score in known])) if known else None for i in (0, 1))
    return ServerResults(path, len(names), runtime_s, mean_psnr, mean_ssim)


def _digest(runner: ModelRunner, dataset: Dataset) -> str:
    """Return a digest of everything that decides restored images and their runtime."""
    entry, device = runner.entry, runner.device
    parts: list[object] = [sources_sha256(entry), entry.arguments, entry.data_range, entry.state_key]
    parts += [runner.weights.sha256, dataset.sha256, machine_line(describe_environment(device))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def server_name(pair: Pair, keep_suffix: bool) -> str:
    """Return the name of a restored image: 0801.png for 0801x4.png, or 0801x4.png with `keep_suffix`."""
    stem = pair.lr.stem if pair.lr else pair.hr_path.stem
    if keep_suffix:
        return f"{stem}.png"
    return f"{stem.removesuffix(f'x{SCALE}')}.png"


def readme(runtime_s: float, on_cpu: bool, team: TeamFile) -> str:
    """Return the four lines that the server reads."""
    return (
        f"runtime per image [s] : {runtime_s:.4f}\n"
        f"CPU[1] / GPU[0] : {int(on_cpu)}\n"
        f"Extra Data [1] / No Extra Data [0] : {int(team.extra_data)}\n"
        f"Other description : {' '.join(team.description.split())}\n"
    )


def checked(path: Path, names: dict[str, Pair]) -> Iterator[tuple[float, float] | None]:
    """Read a zip back; yield (PSNR, SSIM) of each image, None without HR. Raise HarnessError if something is amiss."""
    with zipfile.ZipFile(path) as archive:
        held = sorted(archive.namelist())
        if held != sorted([*names, README]):
            raise HarnessError(f"{path}: holds {len(held)} files, expected {len(names) + 1}; write it again")
        for name, pair in names.items():
            image = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
            lr = pair.read_lr()
            expected = (SCALE * lr.shape[0], SCALE * lr.shape[1], 3)
            if image is None or image.shape != expected or image.dtype != np.uint8:
                raise HarnessError(f"{path}: {name} is not an 8-bit RGB image of {expected[1]} x {expected[0]}")
            if pair.hr is None:
                yield None
                continue
            sr, hr = np.ascontiguousarray(image[..., ::-1]), read_fitting_hr(pair, lr)
            yield psnr(sr, hr), ssim(sr, hr)
