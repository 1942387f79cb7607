"""The scenarios of a run as a section of its page, and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bench import cell
from bench.page import markdown_table
from bench.records import FOREIGN_LIMIT
from bench.scenario import SCENARIOS
from bench.scenario_record import ScenarioRecord
from bench.sheet import CASE_COLUMNS, write_csv
from bench.table import Place

HEADER = ("scenario", "network", "backend", "precision", "batch")
NUMERIC = ("p50 [ms]", "p90 [ms]", "p99 [ms]", "img/s")
#: Columns of the CSV behind those of the case; a figure that nobody has listed here comes behind them.
METRICS = (
    "latency_p50_s",
    "latency_p90_s",
    "latency_p99_s",
    "latency_p90_estimate_s",
    "latency_p99_estimate_s",
    "rate_qps",
    "target_rate_qps",
    "throughput_img_s",
    "time_to_last_s",
    "back_to_back_p50_s",
    "ratio_to_back_to_back",
    "queries",
    "images",
    "trials",
    "bursts",
    "foreign_load",
)
NOTE = """\
How a session does when requests arrive as they do in use; each case was driven in a process of its own, after all
latencies had been measured. `single_stream`: one image, the next when it is answered; `multi_stream`: eight images (a
latency is that of all eight); `server`: one image at random times, at the highest rate at which LoadGen found the p99
latency within the bound; `offline`: all images at once; `idle_gap`: one image 0.1 s after the last answer; `burst`:
64 images at once (the latency is that of the last). The verdict is MLPerf LoadGen's own; `idle_gap` and `burst` are
ours and have none. **These are not MLPerf submissions**: the tests are shorter than MLPerf's rules ask for, and network
and data are ours."""


def render_scenarios(records: Sequence[ScenarioRecord]) -> list[str]:
    """Return the parts of the section on *records*; none where there are none."""
    if not records:
        return []
    parts = ["## Scenarios", NOTE]
    places: dict[Place, list[ScenarioRecord]] = {}
    for record in records:
        places.setdefault((record.case.task, record.case.device, record.case.threads), []).append(record)
    for place, members in places.items():
        shown = sorted((record for record in members if record.status == "ok"), key=_order)
        parts.append(f"### {place[0]} ({cell.machine(place)})")
        if shown:
            header = [*HEADER, *NUMERIC, "verdict", "remark"]
            parts.append(markdown_table(header, map(_cells, shown), ("batch", *NUMERIC)))
        parts += ["\n".join(lines)] if (lines := _remarks(members)) else []
    return parts


def write_scenarios(path: Path, records: Sequence[ScenarioRecord]) -> None:
    """Write one line a scenario of a case to the CSV file *path*; what was not measured is empty."""
    metrics = dict.fromkeys((*METRICS, *(name for record in records for name in record.metrics)))
    settings = sorted({name for record in records for name in record.settings})
    facts = ("scenario", "status", "reason", "verdict")
    lines = [
        [getattr(record.case, name) for name in CASE_COLUMNS]
        + [getattr(record, name) for name in facts]
        + [record.metrics.get(name) for name in metrics]
        + [record.settings.get(name) for name in settings]
        for record in records
    ]
    # A setting such as `trials` may be called like a figure.
    write_csv(path, [*CASE_COLUMNS, *facts, *metrics, *(f"set_{name}" for name in settings)], lines)


def _order(record: ScenarioRecord) -> tuple[int, int, float]:
    """Return what sorts by scenario, then batch size, then speed; a row without any comes last."""
    speed = _speed(record)
    return list(SCENARIOS).index(record.scenario), record.case.batch_size, math.inf if math.isnan(speed) else -speed


def _speed(record: ScenarioRecord) -> float:
    """Return images per second; of one after the other where nothing else was measured."""
    metrics = record.metrics
    if "latency_p50_s" in metrics and record.scenario == "idle_gap":
        return 1 / metrics["latency_p50_s"]
    return metrics.get("rate_qps", metrics.get("throughput_img_s", math.nan))


def _cells(record: ScenarioRecord) -> list[str]:
    case, metrics = record.case, record.metrics
    p50_s = metrics.get("latency_p50_s", metrics.get("time_to_last_s", math.nan))
    times_s = [p50_s, *(metrics.get(f"latency_p{percent}_s", math.nan) for percent in (90, 99))]
    what = [record.scenario, case.network, cell.name_runtime(case), case.precision, str(case.batch_size)]
    speed = math.nan if record.scenario == "idle_gap" else _speed(record)
    figures = [cell.significant(value) for value in (*(1e3 * time_s for time_s in times_s), speed)]
    return [*what, *figures, record.verdict or cell.NOTHING, _remark(record)]


def _remark(record: ScenarioRecord) -> str:
    """Return what else there is to say on a row, such as its bound or that it was disturbed."""
    metrics, parts = record.metrics, []
    if record.scenario == "server":
        bound_s = float(str(record.settings["p99_bound_s"]))
        parts.append(f"p99 bound {1e3 * bound_s:.4g} ms, {metrics['trials']:.0f} trials")
    if "ratio_to_back_to_back" in metrics:
        parts.append(f"{cell.significant(metrics['ratio_to_back_to_back'])} x back to back")
    if (load := metrics.get("foreign_load", 0.0)) > FOREIGN_LIMIT:
        parts.append(f"other work {100 * load:.0f} %")
    return "; ".join(parts)


def _remarks(records: Sequence[ScenarioRecord]) -> list[str]:
    """Return a line for each scenario that is invalid or failed, and for each reason of skipped ones."""
    lines = [f"- INVALID, {_name(each)}: {each.reason}" for each in records if each.verdict == "INVALID"]
    skipped: dict[str, list[str]] = {}
    for record in records:
        if record.status == "skipped":
            skipped.setdefault(record.reason, []).append(_name(record))
    lines += [f"- skipped, {', '.join(names)}: {reason}" for reason, names in skipped.items()]
    return lines + [f"- **failed**, {_name(each)}: {each.reason}" for each in records if each.status == "failed"]


def _name(record: ScenarioRecord) -> str:
    case = record.case
    return f"{record.scenario} {case.network} {cell.name_runtime(case)} {case.precision} b{case.batch_size}"
