"""The report: one self-contained HTML page on the models of a run. The text lies in `report.html`, a Jinja template."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.data.datasets import Dataset, Pair, read_fitting_hr
from utils.data.images import encode_png, read_rgb
from utils.errors import HarnessError
from utils.evaluate.metrics import psnr
from utils.files import write_text
from utils.protocol import SCALE
from utils.record import Record
from utils.results.plots import psnr_difference, psnr_distribution, runtime_by_size, trade_offs
from utils.results.tables import columns, notes, rows

SIDE = 96  # of a crop [HR pixels]
SHOWN = 6  # images with crops
Version = tuple[str, np.ndarray]  # of an image: the model's name, and H x W x 3 uint8


@dataclass(frozen=True)
class Panel:
    """One picture of a row of crops; `psnr` [dB] is that of the crop, None for the LR and the original."""

    title: str
    src: str
    psnr: float | None


@dataclass(frozen=True)
class CropRow:
    """The same window of one image in every version. `spread` is the largest PSNR difference between models [dB]."""

    name: str
    top: int
    left: int
    spread: float
    panels: list[Panel]


@dataclass(frozen=True)
class Section:
    """A table of the page in addition to the factsheet's: `rows` of cells, the first one the header, and notes."""

    title: str
    rows: list[list[str]]
    notes: list[str]


def write_report(
    path: Path, records: list[Record], dataset: Dataset, images_dir: Path, sections: Sequence[Section] = ()
) -> list[str]:
    """Write the page for complete records measured on one dataset; return the names of the models without crops.

    `images_dir`/SLUG/NAME.png are the restored images of each model. A model with missing images has no crops. Raise
    HarnessError if an image cannot be read, or if a record is of other data.
    """
    for record in records:
        if record.dataset.sha256 != dataset.sha256:
            name, label = record.model.name, record.dataset.label
            raise HarnessError(f"{name}: measured on {label}, not on {dataset.folder}; name its data")
    with_quality = [record for record in records if record.psnr_db is not None]
    shown = [record for record in with_quality if _has_images(record, dataset, images_dir)]
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    plots = {}
    if with_quality:
        plots["Quality against cost"] = trade_offs(with_quality)
        plots["PSNR of the images"] = psnr_distribution(with_quality)
    if len(with_quality) > 1:
        plots["Where two models differ"] = psnr_difference(*with_quality[:2])
    plots["Runtime of an image against its size"] = runtime_by_size(records)
    page = template.render(
        columns=columns(records),
        rows=rows(records),
        notes=notes(records),
        plots={title: Markup(svg) for title, svg in plots.items()},
        sections=sections,
        crop_rows=crop_rows(shown, dataset, Path(images_dir)) if shown else [],
        side=SIDE,
    )
    write_text(path, page)
    return [record.model.name for record in with_quality if record not in shown]


def _has_images(record: Record, dataset: Dataset, images_dir: Path) -> bool:
    return all((images_dir / record.model.slug / pair.name).is_file() for pair in dataset.pairs)


def crop_rows(records: list[Record], dataset: Dataset, images_dir: Path) -> list[CropRow]:
    """Return a CropRow for each of the images where the models differ most, at the place where they do.

    A single model is compared with bicubic upscaling.
    """
    spreads = []
    for pair in dataset.pairs:
        hr, versions = _versions(pair, records, images_dir)
        quality = [psnr(image, hr) for _, image in _compared(versions)]
        spreads.append((max(quality) - min(quality), pair))
    spreads.sort(key=lambda item: item[0], reverse=True)
    return [_crop_row(pair, spread, records, images_dir) for spread, pair in spreads[:SHOWN]]


def _compared(versions: list[Version]) -> list[Version]:
    """Return the models' images, with the bicubic one, which comes first, only if there is a single model."""
    return versions[1:] if len(versions) > 2 else versions


def _versions(pair: Pair, records: list[Record], images_dir: Path) -> tuple[np.ndarray, list[Version]]:
    lr = pair.read_lr()
    versions = [("bicubic", cv2.resize(lr, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC))]
    for record in records:
        versions.append((record.model.name, read_rgb(images_dir / record.model.slug / pair.name)))
    return read_fitting_hr(pair, lr), versions


def _crop_row(pair: Pair, spread: float, records: list[Record], images_dir: Path) -> CropRow:
    hr, versions = _versions(pair, records, images_dir)
    top, left = place_of_difference(hr, [image for _, image in _compared(versions)])
    height, width = (min(SIDE, side) for side in hr.shape[:2])
    window = slice(top, top + height), slice(left, left + width)
    lr = pair.read_lr()[tuple(slice(s.start // SCALE, s.stop // SCALE) for s in window)]
    panels = [Panel("LR", _src(lr), None)]
    panels += [Panel(name, _src(image[window]), psnr(image[window], hr[window], shave=0)) for name, image in versions]
    return CropRow(pair.name, top, left, spread, [*panels, Panel("original", _src(hr[window]), None)])


def place_of_difference(hr: np.ndarray, images: list[np.ndarray]) -> tuple[int, int]:
    """Return (top, left) of the SIDE x SIDE window, on the LR grid, where the images' squared errors differ most."""
    errors = np.stack([((image.astype(np.float32) - hr) ** 2).sum(axis=2) for image in images])
    height, width = (min(SIDE, side) for side in hr.shape[:2])
    sums = np.stack([cv2.boxFilter(error, -1, (width, height), normalize=False) for error in errors])
    spread = sums.max(axis=0) - sums.min(axis=0)
    # The filter's value at a pixel is that of the window around it; keep windows that lie inside.
    inside = spread[height // 2 : hr.shape[0] - (height - 1) // 2, width // 2 : hr.shape[1] - (width - 1) // 2]
    top, left = np.unravel_index(np.argmax(inside), inside.shape)
    return int(top) // SCALE * SCALE, int(left) // SCALE * SCALE


def _src(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
