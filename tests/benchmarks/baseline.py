"""A machine's speed as ratios to an anchor: reckoned, compared, kept in a file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.json_lines import from_json, to_json
from bench.measure import utc_now
from bench.records import Environment

Document = Mapping[str, Any]  # JSON of pytest-benchmark


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the suite measured on one machine.

    Attributes:
        fingerprint: Digest of hardware, device and thread count: only equal ones compare.
        environment: Hardware, versions and revision, for the reader.
        saved_at: ISO 8601 time, UTC.
        repeats: Times that the suite was run.
        anchor_s: Fastest call of the anchor [s].
        foreign_load: Busy time of other processes as a share of the threads in use, median over
            the benchmarks; NaN where the system does not tell.
        medians_s: Median call [s] by benchmark, for the reader.
        ratios: What is compared, by benchmark.
    """

    fingerprint: str
    environment: Environment
    saved_at: str
    repeats: int
    anchor_s: float
    foreign_load: float
    medians_s: Mapping[str, float]
    ratios: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, ratio in self.ratios.items():
            if not isinstance(ratio, float | int) or not 0 < ratio < math.inf:
                raise ValueError(f"the ratio of {name} is {ratio!r}, not a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One benchmark before and now; NaN where it was not measured.

    Attributes:
        verdict: ``slower``, ``same``, ``faster``, ``new`` or ``missing``.
    """

    name: str
    before: float
    now: float
    verdict: str


def best_times(documents: Sequence[Document]) -> dict[str, float]:
    """Return the fastest call [s] of each benchmark over all repeats of the suite."""
    best: dict[str, float] = {}
    for document in documents:
        for row in document["benchmarks"]:
            best[row["name"]] = min(row["stats"]["min"], best.get(row["name"], math.inf))
    return best


def ratios(documents: Sequence[Document], anchor: str) -> dict[str, float]:
    """Return the fastest call of each benchmark over that of *anchor*, which is left out.

    Raises:
        LookupError: If *anchor* was not measured.
    """
    best = best_times(documents)
    if anchor not in best:
        raise LookupError(f"the anchor {anchor!r} was not measured; measured: {', '.join(best) or 'nothing'}")
    return {name: time / best[anchor] for name, time in best.items() if name != anchor}


def compare(before: Mapping[str, float], now: Mapping[str, float], threshold: float) -> list[Row]:
    """Return one row a benchmark: those of *now*, then the missing ones.

    Args:
        before: Ratios of the baseline by benchmark.
        now: Ratios measured now.
        threshold: Change beyond which a benchmark is slower; beyond its inverse it is faster.

    Raises:
        ValueError: If the two have no benchmark in common.
    """
    if not before.keys() & now.keys():
        raise ValueError(f"nothing to compare: the baseline holds {', '.join(before)}; measured: {', '.join(now)}")
    rows = []
    for name, ratio in now.items():
        old = before.get(name, math.nan)
        change = ratio / old
        verdict = "slower" if change > threshold else "faster" if change < 1 / threshold else "same"
        rows.append(Row(name=name, before=old, now=ratio, verdict=verdict if name in before else "new"))
    gone = [name for name in before if name not in now]
    return rows + [Row(name=name, before=before[name], now=math.nan, verdict="missing") for name in gone]


def is_slower(rows: Sequence[Row]) -> bool:
    """Return whether a benchmark of *rows* is slower than it was."""
    return any(row.verdict == "slower" for row in rows)


def summarise(documents: Sequence[Document], environment: Environment, device: str) -> Baseline:
    """Return what *documents*, repeats of the suite, say about the machine *environment*."""
    anchor = f"test_anchor[{device}]"
    found = ratios(documents, anchor)
    rows = [row for document in documents for row in document["benchmarks"]]
    medians: dict[str, list[float]] = {}
    for row in rows:
        medians.setdefault(row["name"], []).append(row["stats"]["median"])
    return Baseline(
        fingerprint=environment.fingerprint,
        environment=environment,
        saved_at=utc_now(),
        repeats=len(documents),
        anchor_s=best_times(documents)[anchor],
        foreign_load=statistics.median(row["extra_info"]["foreign_load"] for row in rows),
        medians_s={name: statistics.median(values) for name, values in medians.items()},
        ratios=found,
    )


def load_baseline(path: Path, fingerprint: str) -> Baseline:
    """Return the baseline in *path*.

    Raises:
        ValueError: If it cannot be read, or was saved on a machine with another fingerprint.
    """
    try:
        baseline = from_json(Baseline, path.read_text(encoding="utf-8"))
        if not isinstance(baseline, Baseline):
            raise ValueError("not a JSON object")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no baseline: {error}; measure again with --save") from error
    if baseline.fingerprint != fingerprint:
        raise ValueError(
            f"{path} was saved on {baseline.fingerprint}, this machine is {fingerprint}; "
            "speeds compare on equal hardware, device and threads only"
        )
    return baseline


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write *baseline* to *path*, one fact a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(json.loads(to_json(baseline)), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
