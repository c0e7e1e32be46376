"""Options that command lines share, their values, and renamed options. Nothing heavy is imported here."""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from utils.errors import HarnessError

SPLITS = ("valid", "test")
SANDBOX_MODES = ("auto", "require", "off")
EDITIONS = (2025, 2026)
DEVICES = ("auto", "cpu", "cuda")
IN_TOML = "belongs into a TOML file beside the model's, as docs/measuring.md says"
RENAMED = {  # old names, and what to write instead
    "--trust-checkpoint": "--trust_checkpoint",
    "--dataset": "--split",
    "--images-per-shard": "--images_per_shard",
    "--minutes": "--time_limit",
    "--data": "--train_dir",
    "--validation": "--validation_dir",
    "--sets": "--data_dir",
    "--class": IN_TOML,
    "--args": IN_TOML,
    "--state_key": IN_TOML,
    "--data_range": IN_TOML,
    "--lenient": IN_TOML,
}


def command_line(program: str, purpose: str, *examples: str) -> argparse.ArgumentParser:
    """Return the parser of a command, such as "train.py" or "-m training.fuse"; `examples` follow its name."""
    name = f"python {program}"
    return argparse.ArgumentParser(
        prog=name,
        description=purpose,
        epilog="\n".join(["examples:", *(f"  {name} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(parser: argparse.ArgumentParser, renamed: dict[str, str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raise HarnessError for an option's old name; `renamed` adds this command's."""
    known = {name for command in [parser, *_commands(parser)] for name in command._option_string_actions}
    for name in typed():
        new = ((renamed or {}) | RENAMED).get(name)
        if new and name not in known and (new in known or not new.startswith("--")):
            raise HarnessError(f"{name}: {f'is called {new} now' if new.startswith('--') else new}")
    return parser.parse_args()


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    """Return the parsers of a parser's subcommands."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [command for action in actions for command in action.choices.values()]


def typed() -> list[str]:
    """Return the names of the options that were typed."""
    return [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("--")]


def refuse(names: Iterable[str], reason: str) -> None:
    """Raise HarnessError with the `reason` if one of the options was typed, because it would be ignored."""
    for name in names:
        if name in typed():
            raise HarnessError(f"{name}: {reason}")


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", choices=DEVICES, help="auto: a GPU if there is one (default)")


def add_model(parser: argparse.ArgumentParser | argparse._ArgumentGroup, several: bool = False) -> None:
    """Add the options that name a model, or `several` of the registry."""
    text = "ids in the registry (default: all but variants)" if several else "id in the registry"
    parser.add_argument("--model_id", type=int, nargs="+" if several else None, metavar="N", help=text)
    parser.add_argument(
        "--model_file",
        type=Path,
        metavar="FILE",
        help="Python file of a model, whose code is run; a TOML file of the same name may hold its class and arguments",
    )
    parser.add_argument("--checkpoint", type=Path, help="use these weights instead of the model's")


def add_edition(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --edition."""
    parser.add_argument(
        "--edition",
        type=int,
        choices=EDITIONS,
        default=max(EDITIONS),
        help="year of the challenge, of its rules and its baseline (default %(default)s)",
    )


def positive(text: str) -> int:
    """Parse an argument as a whole number above 0."""
    return _at_least(1, text, "positive")


def natural(text: str) -> int:
    """Parse an argument as a whole number of at least 0."""
    return _at_least(0, text, "a count")


def amount(text: str) -> float:
    """Parse an argument as a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def duration(text: str) -> float:
    """Parse an argument as a number of at least 0, possibly infinite."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a duration")
    return value


def _at_least(least: int, text: str, name: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is not {name}")
    return value
