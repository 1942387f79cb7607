"""The section of a page on drift: a line for each session that was scored, beside eager fp32."""

from __future__ import annotations

from collections.abc import Sequence

from bench import cell
from bench.drift_facts import Drift
from bench.page import markdown_table
from bench.table import Report, Row, group_by_place

NOTES = """\
What each session's answers to all test images are worth, less what those of the reference (eager fp32, NCHW) are:
accuracy in points, an MSE in percent of the reference's; in brackets the 95 % interval, of AUC and MSE over resampled
images, of accuracy by the images lost and gained.
`worse`: the whole interval of some metric is beyond its margin; `non-inferior`: the harmful end of each is within it;
`cannot tell`: neither, for want of images. Flips: images put into another class, those lost and gained by it, and
McNemar's exact p that they are equal."""


def drift_section(report: Report) -> list[str]:
    """Return the section on drift as its parts; none where nothing was compared."""
    compared = [row for row in report.rows.values() if row.record.status == "ok" and row.record.drift]
    if not compared:
        return []
    margins = ", ".join(
        f"{cell.label(name)} {cell.difference(name, margin).removeprefix('+')}"
        for name, margin in report.margins.items()
    )
    parts = ["## Drift from eager fp32", f"{NOTES} Margins: {margins}."]
    groups = group_by_place(compared)
    for place, rows in groups.items():
        if len(groups) > 1:
            parts.append(f"### {place[0]} ({cell.machine(place)})")
        parts.append(_table(rows))
    return parts


def _table(rows: Sequence[Row]) -> str:
    """Return the table of one task; the batch sizes of a session share its line."""
    sessions: dict[tuple[str, ...], tuple[Row, Drift]] = {}
    for row in rows:
        if row.record.drift:
            sessions.setdefault(_session(row), (row, row.record.drift))
    drifts = [drift for _, drift in sessions.values()]
    metrics = list(dict.fromkeys(one.metric for drift in drifts for one in drift.differences))
    has_flips = any(drift.flips is not None for drift in drifts)
    numeric = [*map(cell.label, metrics), *(["flips", "lost", "gained", "p"] if has_flips else [])]
    lines = []
    for name, (row, drift) in sessions.items():
        verdict = f"**{row.drift_verdict}**" if row.drift_verdict == "worse" else row.drift_verdict
        flips = _flips(drift) if has_flips else []
        lines.append([*name, verdict, *(_difference(drift, metric) for metric in metrics), *flips])
    return markdown_table(["network", "backend", "precision", "verdict", *numeric], lines, numeric)


def _session(row: Row) -> tuple[str, ...]:
    return cell.network(row), cell.runtime(row), row.record.case.precision


def _difference(drift: Drift, metric: str) -> str:
    """Return a difference with its interval, e.g. ``-0.0012 (-0.0030 to +0.0004)``."""
    for one in drift.differences:
        if one.metric == metric:
            point, low, high = (cell.difference(metric, value) for value in (one.point, one.low, one.high))
            return f"{point} ({low} to {high})"
    return cell.NOTHING


def _flips(drift: Drift) -> list[str]:
    counts = [cell.NOTHING if count is None else str(count) for count in (drift.flips, drift.lost, drift.gained)]
    return [*counts, cell.NOTHING if drift.mcnemar_p is None else cell.significant(drift.mcnemar_p, 2)]
