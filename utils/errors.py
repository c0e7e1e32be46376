"""The error type for problems that a user can fix, and its relatives."""

import os
import sys
import traceback
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast


class HarnessError(Exception):
    """Bad input. The message is one line: the file or argument, what is wrong with it, and how to fix it.

    `status` is the exit status of a command that fails with this error.
    """

    status = 2


class DivergedError(HarnessError):
    """The loss or gradient of a training is no longer finite."""

    status = 3


class KilledError(HarnessError):
    """A process ended before it replied, by itself or because it broke a limit."""


class PassLimitError(KilledError):
    """A process exceeded the time limit of a pass."""


class ForeignError(Exception):
    """Untrusted code raised an exception in its process, which sent the message."""


def in_one_line(error: BaseException, length: int = 200, file: object = None) -> str:
    """Describe any exception in at most `length` characters, with the line of `file` in its traceback."""
    if isinstance(error, ForeignError):
        return one_line(str(error), length)
    line = line_of(error, file) if file else None
    return one_line(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}", length)


def line_of(error: BaseException, file: object) -> int | None:
    """Return the innermost line number of a Python file in an exception's traceback, or None.

    The file's path may be relative to the project folder.
    """
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((line for name, line in reversed(places) if name.endswith(str(file))), None)


def one_line(text: str, length: int) -> str:
    """Return untrusted text on one line, with single spaces, and "?" for characters that no terminal prints."""
    text = " ".join(text.split())[:length]
    return "".join(character if is_shown(character) else "?" for character in text)


def is_shown(character: str) -> bool:
    """Return whether a terminal can show a character or a space. Control characters and surrogates cannot be shown."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def exit_on_harness_error(main: Callable[[], int | None]) -> NoReturn:
    """Run `main()`; turn a HarnessError into one line on stderr and its exit status, Ctrl-C into status 130.

    Characters that the terminal cannot show are escaped. A closed output pipe, as after `| head`, is not an error.
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
    """A text stream that discards its output once the reader has closed the pipe."""

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
