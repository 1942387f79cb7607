"""Records in, tables, page and picture out: `python -m bench.report RUN`. Needs no runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import cell, page, readme, sheet
from bench.drift_page import drift_section
from bench.evidence_page import evidence_section
from bench.json_lines import from_json, read_lines, read_schemas
from bench.margin import read_margins
from bench.picture import draw_picture
from bench.records import READ_SCHEMAS, Environment, RunRecord
from bench.run_folder import read_scenarios, read_tunings
from bench.scenario_page import render_scenarios, write_scenarios
from bench.table import Report, Row, by_batch_and_latency, group_by_place, make_rows, read_levels
from bench.tune_page import tune_section
from lensing_models.command_line import Parser, run_main

PICTURE = "pareto.png"


def build_report(run_folder: Path) -> Report:
    """Return what *run_folder* holds, ready to be shown.

    Args:
        run_folder: Folder of a run: ``records.jsonl``, and ``environment.json`` and ``run.json``
            where they exist.

    Raises:
        ValueError: If the folder or its records are missing, empty, damaged or of another schema.
    """
    if not run_folder.is_dir():
        raise ValueError(f"no run in {run_folder}: it is not a folder; make one with python -m bench.run --out PATH")
    path = run_folder / "records.jsonl"
    if not path.is_file():
        raise ValueError(f"no records in {run_folder}: records.jsonl is missing; complete the run with --resume")
    if strange := sorted(set(read_schemas(path)) - READ_SCHEMAS):
        raise ValueError(f"{path}: schema {strange[0]} is none of {sorted(READ_SCHEMAS)}, which this version reads")
    records = list(read_lines(path, RunRecord))
    if not records:
        raise ValueError(f"no records in {path}: no case was finished; complete the run with --resume")
    about = _read_about(run_folder / "run.json")
    rows, frontiers = make_rows(records, read_margins(about), read_levels(about))
    return Report(
        folder=run_folder,
        about=about,
        environment=_read_environment(run_folder / "environment.json"),
        rows=rows,
        frontiers=frontiers,
        scenarios=tuple(read_scenarios(run_folder).values()),
    )


def write_report(run_folder: Path) -> list[Path]:
    """Write ``table.csv``, ``pareto.csv``, ``pareto.png`` and ``report.md`` into *run_folder*, and ``scenarios.csv``.

    Returns:
        The files written; without a frontier there is no picture, and an old one is removed. Without
        a scenario there is no ``scenarios.csv``.

    Raises:
        ValueError: As `build_report`.
    """
    return _write(build_report(run_folder))


def write_page(run_folder: Path) -> None:
    """Write ``report.md`` of *run_folder* again, beside the picture that is there."""
    _write_page(build_report(run_folder), has_picture=(run_folder / PICTURE).exists())


def print_tables(report: Report, console: Console) -> None:
    """Print a compact table of each task to *console*; rows on the frontier stand out."""
    for place, rows in group_by_place(report.rows.values()).items():
        shown = by_batch_and_latency(rows)
        if shown:
            console.print(_terminal_table(f"{place[0]} ({cell.machine(place)})", shown))
        counts = {status: sum(row.record.status == status for row in rows) for status in ("skipped", "failed")}
        for status, count in counts.items():
            if count:
                console.print(f"{place[0]}: {count} {status}; see report.md for the reason")
    if text := page.reservation(report):
        console.print(text)


def main(argv: Sequence[str]) -> int:
    """Rebuild the report of a run from its records; return the exit code."""
    parser = Parser(prog="python -m bench.report", description="Rebuild the tables, page and picture of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, e.g. results/<run>")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also splice the short table into this file")
    options = parser.parse_args(argv)
    report = build_report(options.run)
    written = _write(report)
    if options.readme:
        readme.splice(options.readme, report)
        written.append(options.readme)
    for path in written:
        print(path)
    return 0


def _write(report: Report) -> list[Path]:
    folder = report.folder
    table, pareto, picture = (folder / name for name in ("table.csv", "pareto.csv", PICTURE))
    sheet.write_table(table, list(report.rows.values()))
    sheet.write_frontiers(pareto, report.rows, report.frontiers)
    drawn = draw_picture(picture, report)
    if not drawn:
        picture.unlink(missing_ok=True)
    text = _write_page(report, has_picture=drawn)
    scenarios = folder / "scenarios.csv"
    if report.scenarios:
        write_scenarios(scenarios, report.scenarios)
    return [table, pareto, *([picture] if drawn else []), *([scenarios] if report.scenarios else []), text]


def _write_page(report: Report, *, has_picture: bool) -> Path:
    path = report.folder / "report.md"
    tuned = tune_section(report, read_tunings(report.folder))
    sections = [*drift_section(report), *tuned, *render_scenarios(report.scenarios), *evidence_section(report)]
    path.write_text(page.render_page(report, PICTURE if has_picture else None, sections), encoding="utf-8")
    return path


def _terminal_table(title: str, rows: Sequence[Row]) -> Table:
    names = cell.shown_quality(rows)
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("network", "backend", "precision"):
        table.add_column(name)
    for name in ("batch", "p50 [ms]", "img/s", *map(cell.label, names)):
        table.add_column(escape(name), justify="right")
    has_drift = any(row.drift_verdict for row in rows)
    for name in (*(["drift"] if has_drift else []), "validity", ""):
        table.add_column(name)
    for row in rows:
        case = row.record.case
        cells = [cell.network(row).replace("*", ""), cell.runtime(row), case.precision, str(case.batch_size)]
        cells += [cell.latency(row), cell.significant(row.cost["throughput_img_s"])]
        cells += [cell.score(name, row.quality(name)) for name in names]
        cells += [
            *([cell.drift(row).replace("*", "")] if has_drift else []),
            row.record.validity,
            cell.MARKS[row.frontier_kind],
        ]
        table.add_row(*map(escape, cells), style="bold" if row.frontier_kind else None)
    return table


def _read_about(path: Path) -> dict[str, object]:
    """Return the facts of ``run.json``; none where the file is missing."""
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: not a JSON object")
    return facts


def _read_environment(path: Path) -> Environment | None:
    if not path.is_file():
        return None
    try:
        return from_json(Environment, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


if __name__ == "__main__":
    run_main(main)
