"""The edge of every command: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class Terminated(BaseException):
    """The process was asked to end (SIGTERM); like KeyboardInterrupt, no error of a program."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Print *message* and the way to the help, and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def run_main(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run *main* and exit with its code; a caller's mistake exits with 2 and one line.

    `ValueError`, `LookupError` and `OSError` are mistakes of the caller (a wrong name, a damaged
    file, a folder that cannot be written); anything else is ours and keeps its traceback. SIGTERM
    ends it as Ctrl-C does, so that processes of its own end with it.
    """
    _raise_on_sigterm()
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, LookupError, OSError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print("error: " + " ".join(text.split()), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Terminated:
        print("terminated", file=sys.stderr)
        code = 143
    raise SystemExit(code)


def _raise_on_sigterm() -> None:
    """Have SIGTERM raise `Terminated` in this process; forks of it still end at once."""
    owner = os.getpid()

    def terminate(number: int, frame: object) -> None:
        if os.getpid() == owner:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, terminate)
