"""The edge of every command: a user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Print *message* and the way to the help, and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def run_main(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run *main* and exit with its code; a caller's mistake exits with 2 and one line.

    `ValueError`, `LookupError` and `OSError` are mistakes of the caller (a wrong name, a damaged
    file, a folder that cannot be written); anything else is ours and keeps its traceback.
    """
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, LookupError, OSError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print("error: " + " ".join(text.split()), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        code = 130
    raise SystemExit(code)
