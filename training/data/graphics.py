"""Draw training images of text, lines, shapes and patterns: python -m training.data.graphics --out FOLDER

A network trained only on photographs restores slides and signs badly, and on noise gives values far outside of [0, 1].
Some drawings among the photographs fix both (docs/lab/training.md).
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.data.images import write_png
from utils.errors import exit_on_harness_error
from utils.options import command_line, natural, parse, positive
from utils.progress import progress

WIDTH, HEIGHT = 960, 720
Rng = np.random.Generator
Colour = tuple[int, int, int]
OVERSAMPLING = 2  # drawn larger by this factor, then downscaled, so that edges are smooth as in a photograph
FONTS = [
    path
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
    if path.name.startswith(("DejaVu", "STIXGeneral")) and "Display" not in path.name
]
LETTERS = "eeeeettttaaaooooiiinnnsssrrrhhhllddccuummfppggwybvk"  # about as often as English has them
TEXT_SIZES = 9, 64  # [pixels]


def main() -> None:
    parser = command_line(
        "-m training.data.graphics",
        "Draw what photographs hold little of: text, lines, shapes and patterns.",
        "--out data/graphics",
        "--out data/graphics --count 60 --seed 7",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder of graphics_NUMBER.png")
    parser.add_argument("--count", type=positive, default=40, help="number of drawings (default 40)")
    parser.add_argument("--seed", type=natural, default=2026, help="another seed gives other drawings")
    args = parse(parser)
    for number in progress(range(args.count), unit="image"):
        write_png(args.out / f"graphics_{number:03}.png", draw(np.random.default_rng([args.seed, number])))
    print(f"{args.count} drawings in {args.out}")


def draw(rng: Rng, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a random drawing as height x width x 3 uint8: shapes on a plain or graded ground, and text over them."""
    ground, far = _colour(rng), _colour(rng)
    canvas = _graded(rng, ground, far if rng.random() < 0.5 else ground, width * OVERSAMPLING, height * OVERSAMPLING)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(4, 16)):
        shapes = [_outline, _polygon, _stripes, _checks, _curve]
        shapes[rng.choice(len(shapes))](rng, pen, *canvas.size)
    for _ in range(rng.integers(6, 18)):
        _text(rng, pen, *canvas.size)
    if rng.random() < 0.3:
        canvas = canvas.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC, fillcolor=ground)
    kernel = Image.Resampling.LANCZOS if rng.random() < 0.5 else Image.Resampling.BOX
    return np.asarray(canvas.resize((width, height), kernel))


def _colour(rng: Rng) -> Colour:
    """Return black or white half of the time, else any colour."""
    kind = rng.random()
    if kind < 0.5:
        return (0, 0, 0) if kind < 0.3 else (255, 255, 255)
    red, green, blue = rng.choice([0, 255], 3) if kind < 0.6 else rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _graded(rng: Rng, start: Colour, end: Colour, width: int, height: int) -> Image.Image:
    """Return an image that goes evenly from one colour to another in some direction."""
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.arange(height) / height, np.arange(width) / width
    along = math.cos(angle) * columns + math.sin(angle) * rows[:, None]
    along = (along - along.min()) / np.ptp(along)
    first, last = np.array(start, np.float32), np.array(end, np.float32)
    return Image.fromarray((first + (last - first) * along[..., None].astype(np.float32)).astype(np.uint8))


def _box(rng: Rng, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a part of the canvas; it may reach over its edges."""
    left, top = rng.integers(-width // 8, width), rng.integers(-height // 8, height)
    return int(left), int(top), int(rng.integers(20, width // 2)), int(rng.integers(20, height // 2))


def _outline(rng: Rng, pen: ImageDraw.ImageDraw, *canvas: int) -> None:
    left, top, width, height = _box(rng, *canvas)
    shape = pen.rectangle if rng.random() < 0.5 else pen.ellipse
    fill = _colour(rng) if rng.random() < 0.6 else None
    shape((left, top, left + width, top + height), fill, _colour(rng), int(rng.integers(1, 9)))


def _polygon(rng: Rng, pen: ImageDraw.ImageDraw, *canvas: int) -> None:
    left, top, width, height = _box(rng, *canvas)
    corners = rng.random((rng.integers(3, 7), 2)) * (width, height) + (left, top)
    pen.polygon([tuple(corner) for corner in corners], _colour(rng), _colour(rng))


def _stripes(rng: Rng, pen: ImageDraw.ImageDraw, *canvas: int) -> None:
    """Draw parallel lines, as far apart as they are wide."""
    left, top, width, height = _box(rng, *canvas)
    count, angle, colour = int(rng.integers(3, 25)), rng.uniform(0, math.pi), _colour(rng)
    step = max(2 * OVERSAMPLING, width // count // 2)
    along = np.array([-math.sin(angle), math.cos(angle)]) * max(width, height)
    for number in range(count):
        start = np.array([left, top]) + 2 * number * step * np.array([math.cos(angle), math.sin(angle)])
        pen.line([tuple(start), tuple(start + along)], colour, step)


def _checks(rng: Rng, pen: ImageDraw.ImageDraw, *canvas: int) -> None:
    left, top, width, height = _box(rng, *canvas)
    side, colour = int(rng.integers(3, 30)) * OVERSAMPLING, _colour(rng)
    for row in range(min(20, height // side)):
        for column in range(row % 2, min(20, width // side), 2):
            x, y = left + column * side, top + row * side
            pen.rectangle((x, y, x + side - 1, y + side - 1), colour)


def _curve(rng: Rng, pen: ImageDraw.ImageDraw, *canvas: int) -> None:
    left, top, width, height = _box(rng, *canvas)
    middle = np.array([left + width / 2, top + height / 2])
    points = middle + np.cumsum(rng.normal(0, 40 * OVERSAMPLING, (12, 2)), axis=0)
    pen.line([tuple(point) for point in points], _colour(rng), int(rng.integers(1, 9)), joint="curve")


def _text(rng: Rng, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw some lines of words, half of them on a ground of the opposite colour."""
    smallest, largest = TEXT_SIZES
    size = int(math.exp(rng.uniform(math.log(smallest), math.log(largest))) * OVERSAMPLING)
    font = ImageFont.truetype(FONTS[rng.integers(len(FONTS))], size)
    lines = [" ".join(_word(rng) for _ in range(rng.integers(1, 9))) for _ in range(rng.integers(1, 7))]
    text, colour = "\n".join(lines), _colour(rng)
    at = int(rng.integers(-20, width * 3 // 4)), int(rng.integers(0, height))
    if rng.random() < 0.5:
        left, top, right, bottom = pen.multiline_textbbox(at, text, font)
        margin = size // 3
        opposite = tuple(255 - level for level in colour)
        pen.rectangle((left - margin, top - margin, right + margin, bottom + margin), opposite)
    pen.multiline_text(at, text, colour, font)


def _word(rng: Rng) -> str:
    """Return letters that spell nothing, or a number."""
    kind = rng.random()
    if kind < 0.1:
        return str(rng.integers(10 ** rng.integers(1, 6)))
    word = "".join(rng.choice(list(LETTERS), rng.integers(1, 11)))
    if kind < 0.5:
        word = word.upper() if kind < 0.25 else word.capitalize()
    return word + (str(rng.choice(list(".,:;!?"))) if rng.random() < 0.15 else "")


if __name__ == "__main__":
    exit_on_harness_error(main)
