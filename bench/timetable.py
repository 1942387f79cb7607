"""Where the wall time of a run goes: each instant is booked once, so the parts add up to the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from bench.measure import stopwatch

#: Parts in the order in which they are told; others stand before the last two.
PARTS = (
    "data",
    "fit",
    "self-test",
    "build",
    "quality",
    "tuning",
    "warm-up",
    "measuring",
    "rejected",
    "report",
    "other",
)
#: What is booked while nothing else is: imports, starting processes, writing records.
OTHER = "other"


class Timetable:
    """Wall time by part, from this moment on.

    Parts may overlap in threads: an instant in which several are at work is shared evenly among
    them, so that work side by side counts as wall time, not as the sum of the workers' times.
    A thread does not begin a part within another one.
    """

    def __init__(self) -> None:
        self._elapsed, self._settled_s = stopwatch(), 0.0
        self._lock = Lock()
        self._active: list[str] = []
        self._spent_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """Book the time within to *part*."""
        with self._lock:
            self._settle()
            self._active.append(part)
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._active.remove(part)

    def move(self, source: str, target: str, duration_s: float) -> None:
        """Book *duration_s* that went to *source*, or all of it if that is less, to *target* instead."""
        with self._lock:
            self._settle()
            moved_s = min(duration_s, self._spent_s[source])
            self._spent_s[source] -= moved_s
            self._spent_s[target] += moved_s

    def spent_s(self) -> dict[str, float]:
        """Return the wall time of each part that took any, in the order of `PARTS` [s]; `OTHER` is the last."""
        with self._lock:
            self._settle()
            return in_order({part: duration_s for part, duration_s in self._spent_s.items() if duration_s > 0})

    def _settle(self) -> None:
        now_s = self._elapsed()
        parts = self._active or [OTHER]
        for part in parts:
            self._spent_s[part] += (now_s - self._settled_s) / len(parts)
        self._settled_s = now_s


def in_order(spent_s: Mapping[str, float]) -> dict[str, float]:
    """Return *spent_s* in the order of `PARTS`, parts that are not among them before the report."""
    more = [part for part in spent_s if part not in PARTS]
    return {part: spent_s[part] for part in (*PARTS[:-2], *more, *PARTS[-2:]) if part in spent_s}


def add_up(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the time of each part in two attempts at one run [s]."""
    return in_order({part: first.get(part, 0.0) + second.get(part, 0.0) for part in {**first, **second}})
