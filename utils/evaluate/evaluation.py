"""Running a network over a data set: restore every image, time the forward pass, judge the result."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from utils.ahead import ahead
from utils.data.datasets import Pair, read_fitting_hr
from utils.data.images import to_image, to_tensor, write_png
from utils.errors import HarnessError, in_one_line
from utils.evaluate.metrics import psnr, ssim
from utils.measure.runtime import check_output


@dataclass(frozen=True)
class ImageResult:
    """One image: `psnr` [dB] and `ssim` are None where there is no HR, no weights, or (SSIM) nobody asked.

    `tile` is the LR side of the tiles [pixels] if memory ran out on the whole image, else None. `nan` says whether the
    network's output holds NaN, which counts as 0.
    """

    name: str
    lr_pixels: int
    runtime_ms: float
    psnr: float | None
    ssim: float | None
    tile: int | None = None
    nan: bool = False


def evaluate(runner, dataset, with_ssim=False, save_dir=None, workers=0):
    """Yield an ImageResult per pair, in order, restored by a Runner; images go to `save_dir` under the HR's name.

    With `workers` threads, images are decoded ahead, judged and written while the network runs, at most
    2 `workers` of each at a time. On a GPU that leaves the timed forward pass alone on its device; on a CPU it does
    not, and runtimes are those of a busy machine. Without workers nothing runs beside a forward pass: between two of
    them an image is judged and written and the next one decoded, all at once. The results are the same.

    Raises HarnessError at an image that cannot be read, does not fit its partner, or is restored to another size than
    4x; what was yielded before stays good.
    """
    judged = dataset.has_hr and not runner.missing_weights

    def read(pair):
        lr = pair.read_lr()
        return lr, read_fitting_hr(pair, lr) if judged else None

    def judge(pair, lr, hr, restored, start=partial):
        """`start(function, *arguments)` returns what, called, gives the result."""
        sr, runtime_ms, tile, nan = restored
        similarity = start(ssim, sr, hr) if judged and with_ssim else None
        quality = start(psnr, sr, hr) if judged else None
        written = start(write_png, save_dir / pair.name, sr) if save_dir is not None else None
        quality, similarity, _ = (result and result() for result in (quality, similarity, written))
        return ImageResult(pair.name, lr.shape[0] * lr.shape[1], runtime_ms, quality, similarity, tile, nan)

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            images = ahead(pool, lambda pair: (pair, *read(pair)), dataset.pairs, 2 * workers)
            restored = ((pair, lr, hr, restore(runner, lr)) for pair, lr, hr in images)
            yield from ahead(pool, lambda work: judge(*work), restored, 2 * workers)
        return
    with ThreadPoolExecutor(4) as pool:  # the next image, SSIM, PSNR, PNG
        reading = None
        for pair, following in pairwise([*dataset.pairs, None]):
            lr, hr = reading.result() if reading else read(pair)
            restored = restore(runner, lr)
            reading = pool.submit(read, following) if following else None
            yield judge(pair, lr, hr, restored, lambda *call: pool.submit(*call).result)


def default_workers(device):
    """8 on a GPU, which never has to wait then; none on a CPU, where they would slow the timed pass down."""
    return 8 if device.type == "cuda" else 0


def time_dataset(runner, dataset, workers=0):
    """Yield the runtime [ms] of each image's forward pass, in order, judging nothing; `workers` decode ahead."""
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        for lr in ahead(pool, Pair.read_lr, dataset.pairs, 2 * workers):
            yield restore(runner, lr)[1]


def restore(runner, lr):
    """Return (SR, runtime [ms], tile, nan): H x W x 3 uint8 upscaled to 4H x 4W x 3 uint8 as the protocol converts.

    When GPU memory runs out the image is restored in tiles of `tile` x `tile` LR pixels, and the runtime is the sum of
    theirs; otherwise `tile` is None. `nan`: whether the network's output holds NaN.
    """
    entry = runner.entry
    sr, runtime_ms, tile = forward(runner, to_tensor(lr, entry.data_range))
    check_output(sr, lr.shape[:2], entry.file)
    nan = bool(sr.sum().isnan()) and bool(sr.isnan().any())  # a sum of infinities is NaN, too, and one pass is cheap
    return to_image(sr, entry.data_range), runtime_ms, tile, nan


def forward(runner, lr):
    """Return what `runner.forward` does of a 1 x 3 x H x W tensor. Raises HarnessError for whatever that raises."""
    try:
        return runner.forward(lr)
    except HarnessError:
        raise
    except Exception as error:  # a model's code may raise anything
        file, size = runner.entry.file, f"{lr.shape[3]} x {lr.shape[2]}"
        raise HarnessError(f"{file}: fails on an LR image of {size} ({in_one_line(error, file=file)})") from error


def largest_lr(dataset, lr_pixels):
    """Read the LR image with the most pixels, given the count of each, in order: H x W x 3 uint8."""
    return dataset.pairs[int(np.argmax(lr_pixels))].read_lr()
