"""The report's plots, each a self-contained SVG string made by Matplotlib from results records."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from utils.record import Record

# Text stays text, and an untrusted model's name is not parsed as a formula. With a fixed salt and no date, equal
# records give equal pages.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9}
MARKERS = "osD^vP*X<>"


def trade_offs(records: list[Record]) -> str:
    """Plot PSNR against runtime, FLOPs and parameters, with the Pareto front: no other model is better in both."""
    axes: tuple[tuple[str, Callable[[Record], Any]], ...] = (
        ("runtime [ms]", lambda record: record.runtime_ms),
        ("FLOPs [G]", lambda record: record.counts.flops / 1e9),
        ("parameters [M]", lambda record: record.counts.params / 1e6),
    )
    figure, plots = _figure(12, 4, len(axes))
    for plot, (label, cost) in zip(plots, axes, strict=True):
        points = [(cost(record), record.psnr_db or 0.0) for record in records]
        for number, ((x, y), record, marker) in enumerate(zip(points, records, _markers(records), strict=True)):
            # Hollow markers of decreasing size, because variants of a model share their place in two of the plots.
            size = max(5, 12 - 2 * number)
            plot.plot(x, y, marker, markersize=size, fillstyle="none", mew=2, label=record.model.name)
        front = sorted(points[index] for index in pareto_front(points))
        plot.plot(*zip(*front, strict=True), "--", color="0.6", zorder=0, label="Pareto front")
        plot.set(xlabel=label, ylabel="PSNR [dB]")
        plot.ticklabel_format(axis="y", useOffset=False)
        plot.grid(alpha=0.3)
    plots[0].legend(fontsize=8, markerscale=0.6)
    return _svg(figure)


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of the (cost, quality) points that no other point dominates."""
    return [
        index
        for index, (cost, quality) in enumerate(points)
        if not any(
            other_cost <= cost and other >= quality and (other_cost, other) != (cost, quality)
            for other_cost, other in points
        )
    ]


def psnr_distribution(records: list[Record]) -> str:
    """Plot each model's PSNR per image: one point per image over a box from the first to the third quartile."""
    figure, (plot,) = _figure(12, 0.6 * len(records) + 1.4, 1)
    values = [np.array(record.images.psnr, float) for record in records]
    names = [record.model.name for record in records]
    plot.boxplot([v[np.isfinite(v)] for v in values], orientation="horizontal", tick_labels=names, showfliers=False)
    for height, v in enumerate(values, start=1):
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(v))
        plot.plot(v, height + spread, ".", markersize=4, alpha=0.6)
    plot.set(xlabel="PSNR of an image [dB]")
    plot.invert_yaxis()
    plot.grid(axis="x", alpha=0.3)
    return _svg(figure)


def psnr_difference(first: Record, second: Record) -> str:
    """Plot the PSNR of the first model minus the second's, one bar per image, sorted."""
    figure, (plot,) = _figure(12, 3, 1)
    difference = np.subtract(*(np.array(record.images.psnr, float) for record in (first, second)))
    order = np.argsort(difference)
    names = [first.images.name[index].removesuffix(".png") for index in order]
    plot.bar(range(len(order)), difference[order], color=np.where(difference[order] < 0, "tab:red", "tab:green"))
    if len(names) <= 40:
        plot.set_xticks(range(len(names)), names, rotation=45 if len(names) > 8 else 0, ha="right")
    plot.set(ylabel="difference [dB]", title=f"{first.model.name} above {second.model.name}")
    plot.grid(axis="y", alpha=0.3)
    return _svg(figure)


def runtime_by_size(records: list[Record]) -> str:
    """Plot the runtime of every image, the mean of its runs, against its LR pixels."""
    figure, (plot,) = _figure(12, 3.4, 1)
    for record, marker in zip(records, _markers(records), strict=True):
        runs = np.mean([run for run in record.runtime.trusted_runs if run], axis=0)
        pixels = np.array(record.images.lr_pixels) / 1e3
        plot.plot(pixels, runs, marker, markersize=5, alpha=0.7, label=record.model.name)
    plot.set(xlabel="LR pixels [thousands]", ylabel="runtime [ms]", xlim=(0, None), ylim=(0, None))
    plot.legend(fontsize=8)
    plot.grid(alpha=0.3)
    return _svg(figure)


def _markers(records: list[Record]) -> list[str]:
    return [MARKERS[index % len(MARKERS)] for index in range(len(records))]


def _figure(width: float, height: float, columns: int) -> tuple[Figure, Any]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
