"""The second table of a page: what a case costs beside its latency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bench import cell
from bench.statistic import build_medians
from bench.table import Row, by_batch_and_latency

STAGES = ("decode", "preprocess", "copy_in", "compute", "copy_out")
HEADER = (
    *("network", "backend", "precision", "batch"),
    "end to end p50 [ms]",
    "its stages [ms]",
    *("build [s]", "load [s]", "first call [ms]", "peak memory [MiB]", "file [MiB]"),
)
NUMERIC = HEADER[3:]
NOTES = """\
- **saturated**: images per second with two requests in flight, each of a caller of its own, with its 95 % interval;
  ~: by the rules of validity, that of this figure is not `valid`.
- **end to end**: median wall time from a batch of stored counts on the host to a NumPy array of answers, and the
  medians of its stages, which need not add up to it: counts to float32 + scaling to [0, 1] + copy to the device +
  inference + copy back. ~: other people's work was over the limit of a block meanwhile.
- **build**: export, compile and load, where nothing was there already; **load**: the same by a fresh process when the
  file is there; **first call**: the first inference of that process.
- **peak memory**: the most that loading and inferring took above the level before, on the case's device."""


def has_costs(rows: Iterable[Row]) -> bool:
    """Return whether any of *rows* has a cost that this table shows beside build time and file."""
    names = ("end_to_end_p50_s", "load_s", "first_inference_s", "peak_memory_bytes", "largest_batch", "build_spread")
    return any(not math.isnan(row.cost[name]) for row in rows for name in names)


def saturated(row: Row) -> str:
    """Return the saturated throughput of *row* with its interval [img/s]; ~ before one that is not `valid`."""
    point, low, high = (row.cost[f"throughput_saturated{bound}_img_s"] for bound in ("", "_low", "_high"))
    if math.isnan(point):
        return cell.NOTHING
    doubt = "" if row.saturated_validity == "valid" else "~"
    return doubt + cell.with_error(point, low, high)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the ok *rows*, in the order of the page's first table."""
    return [_line(row) for row in by_batch_and_latency(rows)]


def largest_batches(rows: Iterable[Row]) -> list[str]:
    """Return a line for each largest batch that was found, and why it was the last."""
    known = [(row, row.record.measurement) for row in rows if row.record.measurement]
    return [
        f"- Largest batch of {cell.network(row)}, {cell.runtime(row)} {row.record.case.precision}: "
        f"{found.largest_batch}. {found.largest_batch_end}."
        for row, found in known
        if found.largest_batch is not None
    ]


def build_spreads(rows: Iterable[Row]) -> list[str]:
    """Return a line for each case of which several builds were timed: the latency of each, and how far they differ."""
    lines = []
    for row in rows:
        timing, spread = row.record.timing, row.cost["build_spread"]
        if timing and timing.builds > 1:
            medians = ", ".join(cell.significant(1e3 * time_s) for time_s in build_medians(timing))
            case = row.record.case
            apart = "" if math.isnan(spread) else f"; the slowest is {100 * spread:.1f} % over the fastest"
            lines.append(
                f"- {timing.builds} builds of {cell.network(row)}, {cell.runtime(row)} {case.precision}, batch "
                f"{case.batch_size}: p50 {medians} ms{apart}."
            )
    return lines


def _line(row: Row) -> list[str]:
    case, cost = row.record.case, row.cost
    stages = [_stage(1e3 * cost[f"end_to_end_{name}_s"]) for name in STAGES]
    return [
        *(cell.network(row), cell.runtime(row), case.precision, str(case.batch_size)),
        _doubt(row) + cell.significant(1e3 * cost["end_to_end_p50_s"]),
        cell.NOTHING if set(stages) == {cell.NOTHING} else " + ".join(stages),
        _build(row),
        cell.significant(cost["load_s"]),
        cell.significant(1e3 * cost["first_inference_s"]),
        cell.significant(cost["peak_memory_bytes"] / 2**20),
        cell.significant(cost["artifact_bytes"] / 2**20),
    ]


def _stage(value_ms: float) -> str:
    """Return the time of a stage [ms]; what takes next to nothing without its digits."""
    return "<0.01" if value_ms < 0.01 else cell.significant(value_ms, 2)


def _doubt(row: Row) -> str:
    stages = row.record.end_to_end
    return "~" if stages and not stages.accepted else ""


def _build(row: Row) -> str:
    """Return what building from nothing took [s]; a word where the file was there, for then that is not known."""
    known = row.record.measurement
    return "cached" if known and known.artifact_cached else cell.significant(row.cost["build_s"])
