"""Options that command lines share, and their values. Nothing heavy is imported here, so that --help comes at once."""

import argparse
import math
import sys
from pathlib import Path

from utils.errors import HarnessError

SPLITS = ("valid", "test")
SANDBOX_MODES = ("auto", "require", "off")


def refuse(names: tuple[str, ...], reason: str) -> None:
    """Raise HarnessError if one of the options was typed: it would be ignored, for the `reason`."""
    for name in names:
        if any(word == name or word.startswith(f"{name}=") for word in sys.argv[1:]):
            raise HarnessError(f"{name}: {reason}")


def add_model_file(parser):
    """Add the arguments that describe a model of no registry."""
    group = parser.add_argument_group("a model of no registry")
    group.add_argument("--model_file", type=Path, metavar="FILE.py", help="its file, whose code is run")
    group.add_argument("--class", dest="class_name", metavar="NAME", help="the class in --model_file")
    example = '{"*": [3, 3], "upscale": 4}'
    group.add_argument("--args", metavar="JSON", help=f"its arguments, a list or an object, or {example}")
    group.add_argument("--checkpoint", type=Path, help="its weights; with --model_id: instead of the registry's")
    group.add_argument("--state_key", help="where in --checkpoint the weights of --model_file lie")
    group.add_argument("--data_range", type=amount, help="of --model_file's input and output (default 1.0)")
    group.add_argument("--lenient", action="store_true", help="load --model_file's weights with strict=False")


def positive(text):
    """An argument's whole number above 0."""
    return _at_least(1, text, "positive")


def natural(text):
    """An argument's whole number from 0."""
    return _at_least(0, text, "a count")


def amount(text):
    """An argument's finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def duration(text):
    """An argument's number from 0, infinity included."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a duration")
    return value


def _at_least(least, text, name):
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is not {name}")
    return value
