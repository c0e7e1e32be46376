"""Run a network over a data set: restore every image, time the forward pass, score the result."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.ahead import ahead
from utils.data.datasets import Dataset, Pair, read_fitting_hr
from utils.data.images import to_image, to_tensor, write_png
from utils.errors import HarnessError, KilledError, in_one_line
from utils.evaluate.metrics import luma_psnr, luma_ssim, psnr, ssim
from utils.evaluate.runner import ModelRunner
from utils.measure.runtime import Pass, check_output


@dataclass(frozen=True)
class ImageResult:
    """The result of one image. `psnr` [dB] and `ssim`, on RGB and luma, are None without HR, weights or a request.

    `tile` is the LR side of the tiles [pixels] if memory ran out on the whole image, else None. `nan` says whether the
    network's output contains NaN, which counts as 0.
    """

    name: str
    lr_pixels: int
    runtime_ms: float
    psnr: float | None
    ssim: float | None
    tile: int | None = None
    nan: bool = False
    luma_psnr: float | None = None
    luma_ssim: float | None = None


class Restored(NamedTuple):
    """A restored image, 4H x 4W x 3 uint8. The other fields are those of ImageResult."""

    sr: np.ndarray
    runtime_ms: float
    tile: int | None
    nan: bool


def evaluate(
    runner: ModelRunner,
    dataset: Dataset,
    with_ssim: bool = False,
    save_dir: Path | None = None,
    workers: int = 0,
    with_luma: bool = False,
) -> Iterator[ImageResult]:
    """Restore the images with a Runner and yield an ImageResult per pair, in order.

    Images are saved in `save_dir` under the HR image's name. With `workers` threads, images are decoded ahead, scored
    and written while the network runs, at most 2 `workers` of each at a time. On a GPU, the timed forward pass still
    has its device to itself. On a CPU it does not, and runtimes are those of a busy machine. Without workers, nothing
    runs beside a forward pass: between two passes, one image is scored and written while the next one is decoded. The
    results are the same.

    Raise HarnessError for an image that cannot be read, does not fit its partner, or is not restored to 4x its size.
    Results yielded before remain valid.
    """
    scored = dataset.has_hr and not runner.weights.missing_weights

    def read(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
        lr = pair.read_lr()
        return lr, read_fitting_hr(pair, lr) if scored else None

    def score(
        pair: Pair,
        lr: np.ndarray,
        hr: np.ndarray | None,
        restored: Restored,
        start: Callable[..., Callable[[], Any]] = partial,
    ) -> ImageResult:
        """Score and save an image. `start(function, *arguments)` returns a callable that gives the result."""
        sr = restored.sr
        similarity = start(ssim, sr, hr) if scored and with_ssim else None
        quality = start(psnr, sr, hr) if scored else None
        on_luma = [start(metric, sr, hr) if scored and with_luma else None for metric in (luma_psnr, luma_ssim)]
        written = start(write_png, save_dir / pair.name, sr) if save_dir is not None else None
        started = (quality, similarity, *on_luma, written)
        psnr_db, ssim_value, *luma_values, _ = (result and result() for result in started)
        pixels = lr.shape[0] * lr.shape[1]
        return ImageResult(
            pair.name, pixels, restored.runtime_ms, psnr_db, ssim_value, restored.tile, restored.nan, *luma_values
        )

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            images = ahead(pool, lambda pair: (pair, *read(pair)), dataset.pairs, 2 * workers)
            works = ((pair, lr, hr, restore(runner, lr, pair.name)) for pair, lr, hr in images)
            yield from ahead(pool, lambda work: score(*work), works, 2 * workers)
        return
    with ThreadPoolExecutor(4) as pool:  # the next image, SSIM, PSNR, PNG
        reading = None
        for number, pair in enumerate(dataset.pairs):
            lr, hr = reading.result() if reading else read(pair)
            restored = restore(runner, lr, pair.name)
            following = dataset.pairs[number + 1 :][:1]
            reading = pool.submit(read, *following) if following else None
            yield score(pair, lr, hr, restored, lambda *call: pool.submit(*call).result)


def default_workers(device: torch.device) -> int:
    """Return 8 on a GPU, so that it never waits, and 0 on a CPU, where threads would slow the timed pass down."""
    return 8 if device.type == "cuda" else 0


def time_dataset(runner: ModelRunner, dataset: Dataset, workers: int = 0) -> Iterator[float]:
    """Yield the runtime [ms] of each image's forward pass, in order, without scoring. `workers` decode ahead."""
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        for name, lr in ahead(pool, lambda pair: (pair.name, pair.read_lr()), dataset.pairs, 2 * workers):
            yield restore(runner, lr, name).runtime_ms


def restore(runner: ModelRunner, lr: np.ndarray, name: str | None = None) -> Restored:
    """Upscale H x W x 3 uint8 to 4H x 4W x 3 uint8, converted as in the protocol. An error names the image's `name`.

    If GPU memory runs out, the image is restored in tiles of `tile` x `tile` LR pixels, and the runtime is the sum over
    the tiles. Otherwise `tile` is None. `nan` says whether the network's output contains NaN.
    """
    entry = runner.entry
    output, runtime_ms, tile = forward(runner, to_tensor(lr, entry.data_range), name)
    check_output(output, lr.shape[:2], entry.file)
    nan = bool(output.sum().isnan()) and bool(
        output.isnan().any()
    )  # a sum of infinities is NaN, too; one pass is cheap
    return Restored(to_image(output, entry.data_range), runtime_ms, tile, nan)


def forward(runner: ModelRunner, lr: Tensor, name: str | None = None) -> Pass:
    """Run `runner.forward` on a 1 x 3 x H x W tensor. Turn any exception into a HarnessError."""
    image = f"an LR image of {lr.shape[3]} x {lr.shape[2]}{f', {name}' if name else ''}"
    try:
        return runner.forward(lr)
    except KilledError as error:
        raise type(error)(f"{error}, at {image}") from error
    except HarnessError:
        raise
    except Exception as error:  # a model's code may raise anything
        file = runner.entry.file
        raise HarnessError(f"{file}: fails on {image} ({in_one_line(error, file=file)})") from error


def largest_lr(dataset: Dataset, lr_pixels: Sequence[int]) -> np.ndarray:
    """Read the largest LR image as H x W x 3 uint8. `lr_pixels` holds the number of pixels of each image, in order."""
    return dataset.pairs[int(np.argmax(lr_pixels))].read_lr()
