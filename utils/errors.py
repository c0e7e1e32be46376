"""The one error type for what a user can fix."""

import os
import sys
import traceback
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast


class HarnessError(Exception):
    """Bad input. The message is one line: the file or argument, what is wrong with it, and how to fix it.

    `status` is what a command that ends by it exits with.
    """

    status = 2


class DivergedError(HarnessError):
    """A training whose loss or gradient is not a number any more."""

    status = 3


class KilledError(HarnessError):
    """A process that ended before it had answered, by itself or because it broke a limit."""


class PassLimitError(KilledError):
    """A process that took longer for a pass than it may."""


class ForeignError(Exception):
    """An exception that untrusted code raised in its process; the message is the description from there."""


def in_one_line(error: BaseException, length: int = 200, file: object = None) -> str:
    """Describe an exception, of any type and size, in part of a line; with the line of `file` that it came through."""
    if isinstance(error, ForeignError):
        return one_line(str(error), length)
    line = line_of(error, file) if file else None
    return one_line(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}", length)


def line_of(error: BaseException, file: object) -> int | None:
    """Return the number of the innermost line of a Python file that an exception came through, or None.

    The file may be named from the project's folder.
    """
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((line for name, line in reversed(places) if name.endswith(str(file))), None)


def one_line(text: str, length: int) -> str:
    """Return untrusted text as part of a line: white space as single spaces, and what no terminal prints as "?"."""
    text = " ".join(text.split())[:length]
    return "".join(character if is_shown(character) else "?" for character in text)


def is_shown(character: str) -> bool:
    """Return whether a terminal prints a character, or leaves a space for it: no control character, nor half of one."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def exit_on_harness_error(main: Callable[[], int | None]) -> NoReturn:
    """Run `main()`; turn a HarnessError into one line on stderr and its exit status, Ctrl-C into status 130.

    What a terminal cannot show is shown as an escape, and output that nobody reads any more, as after `| head`, ends
    nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    stdout, sys.stdout = sys.stdout, cast(TextIO, PatientOutput(sys.stdout))
    try:
        status = main()
    except HarnessError as error:
        status = _fail(str(error), error.status)
    except KeyboardInterrupt:
        status = _fail("interrupted; what was finished is saved", 130)
    except FileNotFoundError as error:
        if "No usable temporary directory" not in str(error):
            raise
        status = _fail("no temporary folder can be written; set TMPDIR to one that can", HarnessError.status)
    finally:
        sys.stdout.flush()
        sys.stdout = stdout
    sys.exit(status)


class PatientOutput:
    """A text stream whose reader may leave: what it is given from then on goes nowhere."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
