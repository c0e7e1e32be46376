"""utils/submission/diagram.py: equal blocks in one box, and the connections around boxes."""

from pathlib import Path

from PIL import Image

from utils.measure.architecture import INPUT, Architecture, Block
from utils.submission.diagram import boxes, draw_architecture, edges


def block(kind="Body", sources=(), **changes):
    values = {"name": "x", "in_channels": 8, "out_channels": 8, "scale": 1.0, "convs": 3, "params": 9, **changes}
    return Block(kind=kind, sources=list(sources), **values)


def chain():
    """A head, four equal blocks the first of whose outputs is used again, a tail, and a skip from the input."""
    body = [block(sources=[place]) for place in range(4)]
    return Architecture(
        blocks=[block("Conv2d", [INPUT], convs=1), *body, block("Conv2d", [1, 4], convs=1)], sources=[INPUT, 5]
    )


def test_equal_blocks_are_one_box_unless_others_use_their_outputs():
    drawn = boxes(chain())
    assert [(box.block.kind, box.repeats) for box in drawn] == [("Conv2d", 1), ("Body", 1), ("Body", 3), ("Conv2d", 1)]
    assert edges(drawn, chain()) == [(INPUT, 0), (INPUT, 4), (0, 1), (1, 2), (1, 3), (2, 3), (3, 4)]


def test_other_channels_or_another_size_make_another_box():
    blocks = [block(sources=[INPUT]), block(sources=[0], out_channels=9), block(sources=[1], out_channels=9, scale=4.0)]
    assert len(boxes(Architecture(blocks=blocks, sources=[2]))) == 3


def test_diagram_is_a_picture_and_a_pdf_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        draw_architecture(chain(), "$Net_1$", tmp_path / name)  # a name is not a formula
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 100
        dark = sum(picture.convert("L").histogram()[:100])
    assert dark > 500
    assert Path(tmp_path / "a.pdf").read_bytes() == Path(tmp_path / "b.pdf").read_bytes()
