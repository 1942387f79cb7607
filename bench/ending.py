"""How a run ends: its tables on the terminal, how many cases came to what, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.json_lines import read_lines
from bench.plan import Sweep
from bench.records import RunRecord
from bench.report import build_report, print_tables
from bench.run_folder import read_scenarios, read_tunings

#: Exit code of a run without a valid row, where other work was in the way of some.
SPOILT = 3


def tell(out: Path, sweep: Sweep, *, strict: bool) -> int:
    """Print the tables of the run in *out*, and return the exit code."""
    # In a log there is no width to obey; 80 columns would cut every name.
    report = build_report(out)
    print_tables(report, Console(width=None if sys.stdout.isatty() else 150))
    planned = {planned.case.key for planned in sweep.cases}
    records = {record.case.key: record for record in read_lines(out / "records.jsonl", RunRecord)}
    statuses = [record.status for key, record in records.items() if key in planned]
    driven = [
        record.status
        for (key, scenario), record in read_scenarios(out).items()
        if key in planned and scenario in sweep.scenarios
    ]
    scenarios = f"; scenarios: {count_statuses(driven)}" if driven else ""
    print(f"{count_statuses(statuses)}{scenarios}; report: {out / 'report.md'}")
    # A tuned case that would be the default one again is lacking nowhere.
    kept = {key for key, found in read_tunings(out).items() if found.keeps_defaults}
    skipped = [key for key, record in records.items() if key in planned - kept and record.status == "skipped"]
    if "failed" in {*statuses, *driven} or (strict and (skipped or "skipped" in driven)):
        return 1
    found = {row.record.validity for key, row in report.rows.items() if key in planned}
    return SPOILT if "contended" in found and "valid" not in found else 0


def count_statuses(statuses: Sequence[str]) -> str:
    """Return how many of *statuses* are what, e.g. ``3 ok, 1 skipped, 0 failed``."""
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "skipped", "failed"))
