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


def tell(out: Path, sweep: Sweep, *, strict: bool) -> int:
    """Print the tables of the run in *out*, and return the exit code."""
    # In a log there is no width to obey; 80 columns would cut every name.
    print_tables(build_report(out), Console(width=None if sys.stdout.isatty() else 150))
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
    return int("failed" in {*statuses, *driven} or (strict and bool(skipped or "skipped" in driven)))


def count_statuses(statuses: Sequence[str]) -> str:
    """Return how many of *statuses* are what, e.g. ``3 ok, 1 skipped, 0 failed``."""
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "skipped", "failed"))
