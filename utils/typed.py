"""Convert values from files and other processes to declared types, with a one-line error if they do not fit."""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from utils.errors import HarnessError

T = TypeVar("T")
LARGEST = 1 << 62  # of the numbers that another process may send
LONGEST = 4096  # of its texts and lists
Count = Annotated[int, Meta(ge=0, lt=LARGEST)]
Amount = Annotated[float, Meta(ge=0, lt=LARGEST)]
Text = Annotated[str, Meta(max_length=LONGEST)]
Texts = Annotated[list[Text], Meta(max_length=LONGEST)]


def converted(values: Any, kind: type[T], source: object, remedy: str = "") -> T:
    """Convert plain values, as read from TOML or JSON, to a dataclass or Struct.

    Raise HarnessError naming `source`, the key and what was expected there; `remedy` says what to do.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        key = place.removesuffix("`").removeprefix(".")
        reason = reason[0].lower() + reason[1:]
        for words, plain in (
            ("object contains unknown field", "unknown key"),
            ("object missing required field", "missing key"),
        ):
            reason = reason.replace(words, plain)
        raise HarnessError(
            f"{source}: {f'{key}: ' if key else ''}{reason.replace('`', '')}{f'; {remedy}' if remedy else ''}"
        ) from error
