"""The section of a page on tuning: what was tried for each case, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bench import cell
from bench.knob import Try, Tuning, describe_settings, untuned
from bench.page import markdown_table
from bench.statistic import latency_ratio
from bench.table import Report, Row

NOTES = """\
Each setting was timed in turns with the best so far, and taken if it was faster by 3 % or more and the interval of the
ratio below 1. The times of the search are not those of the rows, which were measured afterwards. Gain: by what factor
the tuned row is faster than the default one, with its 95 % interval over the rounds of both; ~ without such."""


def tune_section(report: Report, tunings: Mapping[str, Tuning]) -> list[str]:
    """Return the section on *tunings*, by case key, as its parts; none where nothing was tuned."""
    lines = [_line(row, tunings[key], report) for key, row in report.rows.items() if key in tunings]
    if not lines:
        return []
    header = [
        "network",
        "task",
        "backend",
        "precision",
        "batch",
        "settings",
        "gain",
        "tried (ratio to the best so far)",
    ]
    return ["## Tuning", NOTES, markdown_table(header, lines, ["batch", "gain"])]


def _line(row: Row, tuning: Tuning, report: Report) -> list[str]:
    case = row.record.case
    return [
        *(cell.network(row), case.task, case.backend, case.precision, str(case.batch_size)),
        describe_settings(tuning.settings),
        _gain(row, report),
        "; ".join(_tried(each) for each in tuning.tries) or cell.NOTHING,
    ]


def _gain(row: Row, report: Report) -> str:
    """Return how many times faster *row* is than that of the default settings; ~ if not measured in the same rounds."""
    plain = report.rows.get(untuned(row.record.case).key)
    ours, theirs = row.record.timing, plain.record.timing if plain else None
    if plain is None or ours is None or theirs is None:
        return cell.NOTHING
    if ours.group and ours.group == theirs.group:
        gain = latency_ratio(theirs, ours)
        # NaN where no two of their blocks count in one round.
        if not math.isnan(gain.low):
            return f"{gain.point:.2f} ({gain.low:.2f} to {gain.high:.2f})"
    return f"~{plain.cost['latency_p50_s'] / row.cost['latency_p50_s']:.2f}"


def _tried(each: Try) -> str:
    result = (
        f"failed: {each.failure}" if each.failure else cell.NOTHING if math.isnan(each.ratio) else f"{each.ratio:.3f}"
    )
    return f"{describe_settings(each.settings)} {result}" + (" (taken)" if each.is_taken else "")
