"""How fast the anchors can be on this machine, in this run and in earlier ones, and which rows met them slower."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from bench.json_lines import append_line, from_json
from bench.records import Block, Environment, RunRecord, Timing
from bench.statistic import accepted_blocks

#: An anchor was slow in the rounds of a row if it surely took this much of its level: the lower end of its time,
#: with 95 % confidence, is above it.
SLOW_ROW = 1.02
CONFIDENCE = 0.95
#: Quantile of the anchor's times over the groups of a run that is its level there.
QUIET_QUANTILE = 0.25
#: Runs that are remembered, of whose levels the median counts, and how many it takes to trust that.
REMEMBERED, FEWEST_RUNS = 20, 3
#: Multiple of what fewer runs tell that is the level then: a row is slow at 1.15 of what they tell.
ALLOWANCE = 1.15 / SLOW_ROW
#: Name of the file, in the cache.
LEVELS = "anchors.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorTime:
    """What an anchor took in the rounds of a row: the geometric mean of its block medians, and its lower end [s]."""

    point_s: float
    low_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """How fast an anchor was in the quieter groups of one run, a line of ``anchors.jsonl``.

    Attributes:
        run: Name of its folder.
        begun_at: When it was begun: another run may have a folder of the same name.
        fingerprint: Of the machine, its device and the threads.
        torch: Version of what runs the anchor.
        level_s: That time [s].
    """

    run: str
    begun_at: str = ""
    recorded_at: str
    fingerprint: str
    torch: str
    anchor: str
    level_s: float


def estimate(blocks: Sequence[Block]) -> AnchorTime:
    """Return the time of an anchor over its *blocks*, one or more; with one there is no lower end (NaN)."""
    logs = np.log([np.median(block.samples_s) for block in blocks])
    count, mean = len(logs), float(logs.mean())
    if count < 2:
        return AnchorTime(point_s=math.exp(mean), low_s=math.nan)
    width = float(stdtrit(count - 1, CONFIDENCE)) * float(logs.std(ddof=1)) / math.sqrt(count)
    return AnchorTime(point_s=math.exp(mean), low_s=math.exp(mean - width))


def recall(path: Path, environment: Environment) -> dict[str, float]:
    """Return by anchor how fast it can be [s]: the median of the last runs' levels in *environment*.

    Of an even number it is the lower of the two in the middle, and of fewer than `FEWEST_RUNS` runs the `ALLOWANCE`
    of it. A line that cannot be read is passed over.
    """
    levels: dict[str, dict[tuple[str, str], float]] = {}
    for text in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            line = from_json(Level, text)
        except ValueError:
            continue
        if (line.fingerprint, line.torch) == (environment.fingerprint, environment.versions.get("torch", "")):
            # A run that was resumed counts once, with what it knew last.
            known = levels.setdefault(line.anchor, {})
            run = (line.run, line.begun_at)
            known.pop(run, None)
            known[run] = line.level_s
    return {
        name: statistics.median_low(list(runs.values())[-REMEMBERED:]) * (ALLOWANCE if len(runs) < FEWEST_RUNS else 1)
        for name, runs in levels.items()
    }


def remember(
    path: Path, environment: Environment, records: Iterable[RunRecord], recorded_at: str, *, begun_at: str
) -> None:
    """Append to the file *path* how fast the anchors were among *records*, of the run that *begun_at* began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = list(records)
    for name, level_s in run_levels(known).items():
        line = Level(
            run=known[0].run,
            begun_at=begun_at,
            recorded_at=recorded_at,
            fingerprint=environment.fingerprint,
            torch=environment.versions.get("torch", ""),
            anchor=name,
            level_s=level_s,
        )
        append_line(path, line)


def run_levels(records: Iterable[RunRecord]) -> dict[str, float]:
    """Return by anchor the `QUIET_QUANTILE` of its times over the groups of *records* [s], the lower of two between.

    The rows of a group, measured in the same rounds, count as one; one with too few blocks with what the anchor
    can surely do: a group of which most was disturbed still tells that others were slower than need be.
    """
    groups: dict[str, dict[str, list[float]]] = {}
    for timing in (record.timing for record in records if record.timing):
        for name, time_s in _possible_times(timing):
            groups.setdefault(name, {}).setdefault(timing.group, []).append(time_s)
    return {
        name: float(np.quantile([np.median(times) for times in found.values()], QUIET_QUANTILE, method="lower"))
        for name, found in groups.items()
    }


def _possible_times(timing: Timing) -> Iterator[tuple[str, float]]:
    """Yield what each anchor took in the rounds of *timing* [s], or the upper end of it if those are too few."""
    enough = len(accepted_blocks(timing.blocks)) >= timing.required_blocks
    for name, time_s in timing.anchor_s.items():
        low_s = timing.anchor_low_s.get(name)
        if enough:
            yield name, time_s
        elif low_s:
            # The interval is symmetric in the logarithm. NaN, or null in the file, is none.
            high_s = time_s * time_s / low_s
            if math.isfinite(high_s):
                yield name, high_s


def find_levels(records: Iterable[RunRecord], remembered: Mapping[str, float]) -> dict[str, float]:
    """Return by anchor how fast it can be by *records* and by earlier runs, whichever is less [s]."""
    return {name: min(time_s, remembered.get(name, time_s)) for name, time_s in run_levels(records).items()}


def met_slow_anchor(record: RunRecord, levels: Mapping[str, float]) -> bool:
    """Return whether an anchor was surely slower than `SLOW_ROW` of its level in the rounds of *record*."""
    lows = record.timing.anchor_low_s if record.timing else {}
    # A NaN, or null in the file, is no lower end.
    return any(low_s is not None and low_s > SLOW_ROW * levels[name] for name, low_s in lows.items() if name in levels)


def review_rows(records: Iterable[RunRecord], remembered: Mapping[str, float]) -> list[RunRecord]:
    """Return *records*, those ``contended`` in whose rounds an anchor was slow.

    Args:
        records: Of one run; a case that comes twice counts with its last.
        remembered: What the anchors can do by earlier runs [s].
    """
    latest = list({record.case.key: record for record in records}.values())
    levels = find_levels(latest, remembered)
    return [
        replace(record, validity="contended")
        if record.validity not in ("", "fallback") and met_slow_anchor(record, levels)
        else record
        for record in latest
    ]


def contended_keys(records: Iterable[RunRecord], remembered: Mapping[str, float]) -> frozenset[str]:
    """Return the keys of the cases whose row is ``contended``, as `review_rows` sees it."""
    return frozenset(row.case.key for row in review_rows(records, remembered) if row.validity == "contended")
