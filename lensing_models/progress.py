"""Progress on stderr: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

#: In a log, a line is printed at the latest after this many seconds, as soon as there is something to count [s].
PATIENCE_S = 60.0


class ProgressLine:
    """One advancing count with a word on what is being done now; a context manager.

    Args:
        title: What is counted.
        total: Steps in all; None if nobody knows.
        every: In a log, a line is printed each time this share of the total is passed, or
            `PATIENCE_S` after the last one; without a total, at every step.
        silent: Show nothing: another process does.
    """

    def __init__(self, title: str, total: int | None, every: float = 0.1, silent: bool = False) -> None:
        self._title, self._total, self._done = title, total, 0
        self._every, self._printed = every, 0.0
        self._printed_at = time.monotonic()
        console = Console(stderr=True)
        # Two refreshes a second: the bar's own thread must not disturb what is being timed.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            refresh_per_second=2,
            disable=silent or not console.is_terminal,
        )
        self._plain = not silent and not console.is_terminal
        self._task: TaskID = self._bar.add_task(title, total=total, now="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, now: str = "", steps: int = 1) -> None:
        """Count *steps* as done and show *now*."""
        self._done += steps
        self._bar.update(self._task, completed=self._done, now=now)
        share = self._done if self._total is None else self._done / max(self._total, 1)
        late = time.monotonic() - self._printed_at >= PATIENCE_S
        if self._plain and (share - self._printed >= self._every or self._done == self._total or late):
            self._printed = share
            self._print(now)

    def reach(self, done: int, now: str = "") -> None:
        """Count up to *done*."""
        self.advance(now, done - self._done)

    def say(self, now: str) -> None:
        """Show *now* without counting; in a log, a line of its own."""
        self._bar.update(self._task, now=now)
        if self._plain:
            self._print(now)

    def _print(self, now: str) -> None:
        self._printed_at = time.monotonic()
        count = str(self._done) if self._total is None else f"{self._done}/{self._total}"
        print(f"{self._title}: {count} {now}", file=sys.stderr, flush=True)
