"""Draw the diagram of a network's architecture from the trace of one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from utils.files import replacing
from utils.measure.architecture import INPUT, Architecture, Block

STYLE: Any = {"text.parse_math": False, "font.size": 9, "pdf.fonttype": 42}  # a name is not a formula
WIDTH, HEIGHT, STEP = 0.46, 2.1, 0.72  # of a box, and from one to the next [inches]
RISE = 0.2  # from one level of connections to the next [inches]
COLOURS = {"conv": "#d8e6f4", "block": "#fbe3c4", "other": "#e4e4e4"}


@dataclass(frozen=True)
class Box:
    """Equal blocks in a row, drawn as one box. `first` and `last` are the indices of its blocks."""

    block: Block
    first: int
    last: int

    @property
    def repeats(self) -> int:
        """Return the number of blocks."""
        return self.last - self.first + 1


def boxes(architecture: Architecture) -> list[Box]:
    """Return the boxes. Equal blocks become one box if only the next block takes the output of each."""
    takers = [*(block.sources for block in architecture.blocks), architecture.sources]
    found: list[Box] = []
    for place, block in enumerate(architecture.blocks):
        if found and _continues(found[-1], place, block, takers):
            found[-1] = Box(found[-1].block, found[-1].first, place)
        else:
            found.append(Box(block, place, place))
    return found


def _continues(box: Box, place: int, block: Block, takers: Sequence[Sequence[int]]) -> bool:
    last = box.last
    alike = _look(box.block) == _look(block) and block.sources == [last]
    return alike and sum(last in sources for sources in takers) == 1


def _look(block: Block) -> tuple[str, int, int, float, int, int]:
    return block.kind, block.in_channels, block.out_channels, block.scale, block.convs, block.params


def edges(drawn: Sequence[Box], architecture: Architecture) -> list[tuple[int, int]]:
    """Return (from, to) of the connections: indices of boxes, INPUT for the input, `len(drawn)` for the output."""
    box_of = {place: number for number, box in enumerate(drawn) for place in range(box.first, box.last + 1)}
    box_of[INPUT] = INPUT
    into = [(number, box.block.sources) for number, box in enumerate(drawn)] + [(len(drawn), architecture.sources)]
    return sorted({(box_of[source], number) for number, sources in into for source in sources if source in box_of})


def draw_architecture(architecture: Architecture, name: str, stem: Path) -> None:
    """Write the diagram as `stem`.pdf and `stem`.png."""
    drawn = boxes(architecture)
    connections = edges(drawn, architecture)
    around = [edge for edge in connections if edge[1] - edge[0] > 1]
    levels = _levels(around)
    top = HEIGHT + 0.25 + RISE * (max(levels, default=0) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(STEP * (len(drawn) + 2), top + 0.5))
        plot = figure.add_axes((0, 0, 1, 1))
        plot.set(xlim=(-1.5 * STEP, (len(drawn) + 0.5) * STEP), ylim=(-0.5, top))
        plot.axis("off")
        ends = {INPUT: "LR", len(drawn): "SR"}
        for number, box in enumerate(drawn):
            _draw_box(plot, number * STEP, box)
        for number, text in ends.items():
            plot.text(number * STEP, HEIGHT / 2, text, ha="center", va="center", fontweight="bold")
        for start, end in connections:
            if end - start == 1:
                left, right = start * STEP + _half(start, ends), end * STEP - _half(end, ends)
                _draw_arrow(plot, (left, HEIGHT / 2), (right, HEIGHT / 2))
        for (start, end), level in zip(around, levels, strict=True):
            height = HEIGHT + 0.25 + RISE * level
            foot = {number: HEIGHT / 2 + 0.12 if number in ends else HEIGHT for number in (start, end)}
            left, right = start * STEP + 0.1, end * STEP - 0.1
            points = [(left, foot[start]), (left, height), (right, height)]
            plot.plot(*zip(*points, strict=True), color="0.35", linewidth=1)
            _draw_arrow(plot, (right, height), (right, foot[end]))
        plot.text(-1.3 * STEP, -0.42, name, fontsize=8, color="0.35")
        for suffix in (".pdf", ".png"):
            with replacing(stem.with_suffix(suffix)) as partial:
                # No date, so that the same network gives the same file.
                figure.savefig(
                    partial, format=suffix[1:], dpi=150, metadata={"CreationDate": None} if suffix == ".pdf" else None
                )


def _half(number: int, ends: dict[int, str]) -> float:
    return 0.17 if number in ends else WIDTH / 2


def _draw_box(plot: Any, x: float, box: Box) -> None:
    block = box.block
    kind = "conv" if block.convs == 1 else "block" if block.convs else "other"
    plot.add_patch(
        FancyBboxPatch(
            (x - WIDTH / 2, 0),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=COLOURS[kind],
            edgecolor="0.35",
        )
    )
    scale = f", x{block.scale:g}" if block.scale != 1 else ""
    channels = f"{block.in_channels} \N{RIGHTWARDS ARROW} {block.out_channels}{scale}"
    plot.text(x - 0.08, HEIGHT / 2, block.kind, rotation=90, ha="center", va="center")
    plot.text(x + 0.12, HEIGHT / 2, channels, rotation=90, ha="center", va="center", fontsize=7.5, color="0.3")
    if box.repeats > 1:
        plot.text(x, -0.08, f"\N{MULTIPLICATION SIGN} {box.repeats}", ha="center", va="top", fontweight="bold")


def _draw_arrow(plot: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    plot.annotate("", end, start, arrowprops=arrow)


def _levels(around: Sequence[tuple[int, int]]) -> list[int]:
    """Return the level of each connection. Those over the same boxes do not touch, and short ones are lowest."""
    levels: dict[tuple[int, int], int] = {}
    for edge in sorted(around, key=lambda edge: edge[1] - edge[0]):
        taken = {level for other, level in levels.items() if other[0] <= edge[1] and edge[0] <= other[1]}
        levels[edge] = next(level for level in range(len(around)) if level not in taken)
    return [levels[edge] for edge in around]
