"""How fast the anchors can be on this machine, in this run and in earlier ones, and which rows met them slower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.json_lines import append_line, read_lines
from bench.records import Environment, RunRecord

#: How much slower than it can be an anchor may have been, in the median over a row's rounds. Processes of one
#: session differ by about 1 % for good, so that less would be chance.
SLOW_ROW = 1.03
#: Runs that are remembered, and the quantile of their levels that is what the anchor can do: low, and not the
#: lowest, so that a machine that has become slower for good is accepted in the end.
REMEMBERED, QUIET_QUANTILE = 20, 0.1
#: Name of the file, in the cache.
LEVELS = "anchors.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How fast an anchor was in the quietest rounds of one run, a line of ``anchors.jsonl``.

    Attributes:
        fingerprint: Of the machine, its device and the threads.
        torch: Version of what runs the anchor.
        level_s: Its lowest median over the rounds of a row [s].
    """

    recorded_at: str
    fingerprint: str
    torch: str
    anchor: str
    level_s: float


def recall(path: Path, environment: Environment) -> dict[str, float]:
    """Return by anchor how fast it can be [s], from the last runs in *environment*; empty without one.

    A damaged file remembers nothing.
    """
    try:
        known = list(read_lines(path, Level)) if path.exists() else []
    except ValueError:
        return {}
    levels: dict[str, list[float]] = {}
    for line in known:
        if (line.fingerprint, line.torch) == (environment.fingerprint, environment.versions.get("torch", "")):
            levels.setdefault(line.anchor, []).append(line.level_s)
    return {name: float(np.quantile(times[-REMEMBERED:], QUIET_QUANTILE)) for name, times in levels.items()}


def remember(path: Path, environment: Environment, records: Iterable[RunRecord], recorded_at: str) -> None:
    """Append to the file *path* how fast the anchors were at best among *records*, made in *environment*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch = environment.versions.get("torch", "")
    for name, time_s in lowest_times(records).items():
        line = Level(
            recorded_at=recorded_at, fingerprint=environment.fingerprint, torch=torch, anchor=name, level_s=time_s
        )
        append_line(path, line)


def lowest_times(records: Iterable[RunRecord]) -> dict[str, float]:
    """Return by anchor its lowest median over the rounds of one of *records* that has its blocks [s]."""
    lowest: dict[str, float] = {}
    for record in records:
        timing = record.timing
        if timing and sum(block.accepted for block in timing.blocks) >= timing.required_blocks:
            for name, time_s in timing.anchor_s.items():
                lowest[name] = min(time_s, lowest.get(name, time_s))
    return lowest


def review_rows(records: Iterable[RunRecord], remembered: Mapping[str, float]) -> list[RunRecord]:
    """Return *records*, those ``contended`` in whose rounds an anchor took over `SLOW_ROW` of what it can do.

    Args:
        records: Of one run; a case that comes twice counts with its last.
        remembered: What the anchors can do by earlier runs [s].
    """
    latest = list({record.case.key: record for record in records}.values())
    levels = find_levels(latest, remembered)
    return [
        replace(record, validity="contended")
        if record.validity not in ("", "fallback") and slowness(record, levels) > SLOW_ROW
        else record
        for record in latest
    ]


def find_levels(records: Iterable[RunRecord], remembered: Mapping[str, float]) -> dict[str, float]:
    """Return by anchor how fast it can be by *records* and by earlier runs [s]."""
    now = lowest_times(records)
    return {name: min(time_s, remembered.get(name, time_s)) for name, time_s in now.items()}


def slowness(record: RunRecord, levels: Mapping[str, float]) -> float:
    """Return the largest ratio of an anchor's time in the rounds of *record* to its level; 1 where none is known."""
    known = record.timing.anchor_s if record.timing else {}
    return max((time_s / levels[name] for name, time_s in known.items() if name in levels), default=1.0)
