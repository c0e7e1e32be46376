"""The one error type for what a user can mend."""

import sys


class HarnessError(Exception):
    """Bad input. The message is one line: the file or argument, what is wrong with it, and how to mend it."""


def in_one_line(error, length=200):
    """Describe an exception, of any type and size, in part of a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def exit_on_harness_error(main):
    """Run `main()`; turn a HarnessError into one line on stderr and exit status 2, Ctrl-C into status 130."""
    try:
        sys.exit(main())
    except HarnessError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; what was measured is saved", 130))


def _fail(message, status):
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
