"""Rows as CSV: floats in full, and what does not apply left empty, never 0."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

from bench import statistic
from bench.drift_facts import Estimate
from bench.margin import MARGINS
from bench.metrics import COST_METRICS
from bench.records import Case
from bench.table import Frontier, Row, evidence_of
from lensing_models.metrics import known_metrics

Cell = str | int | float | bool | None
CASE_COLUMNS = tuple(field.name for field in dataclasses.fields(Case))
# What stands beside the frontier; the other metrics come behind it.
FIRST_COSTS = ("latency_p50_s", "latency_p50_low_s", "latency_p50_high_s", "throughput_img_s")
MEMORY_OF = {"cpu": "host", "cuda": "device"}
FIRST_QUALITY = ("auc", "accuracy", "mse")
# How a column of an estimate ends, and which field it holds.
BOUNDS = {"": "point", "_low": "low", "_high": "high"}
FLIPS = {"flips": "flips", "flips_lost": "lost", "flips_gained": "gained", "mcnemar_p": "mcnemar_p"}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write one line a row to the CSV file *path*."""
    columns = _columns(rows)
    write_csv(path, list(columns), ([read(row) for read in columns.values()] for row in rows))


def write_frontiers(path: Path, rows: Mapping[str, Row], frontiers: Sequence[Frontier]) -> None:
    """Write one line a member of each frontier to the CSV file *path*, best cost first."""
    header = ["frontier", "kind", "rank", *CASE_COLUMNS, "x_metric", "x", "y_metric", "y", "validity"]
    lines: list[list[Cell]] = []
    for found in frontiers:
        for rank, row in enumerate((rows[key] for key in found.keys), start=1):
            case: list[Cell] = [getattr(row.record.case, name) for name in CASE_COLUMNS]
            values: list[Cell] = [found.x.name, row.cost[found.x.name], found.y.name, row.quality(found.y.name)]
            lines.append([found.name, found.kind, rank, *case, *values, row.record.validity])
    write_csv(path, header, lines)


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], Cell]]:
    """Return the columns of the table in order: what each is called and how a row gives it."""
    quality = dict.fromkeys((*known_metrics(), *(name for row in rows for name in row.record.quality)))
    timing = ("samples", "blocks", "rejected_blocks", "stop_reason")
    return {
        **{name: attrgetter(f"record.case.{name}") for name in CASE_COLUMNS},
        **{name: attrgetter(f"record.{name}") for name in ("status", "reason", "validity")},
        **{name: partial(_cost, name) for name in FIRST_COSTS},
        **{name: partial(_quality, name) for name in FIRST_QUALITY},
        **{name: attrgetter(name) for name in ("on_frontier", "frontier_kind")},
        **{name: partial(_quality, name) for name in quality if name not in FIRST_QUALITY},
        "parity_error": lambda row: row.record.parity.error if row.record.parity else None,
        "quality_images": lambda row: row.record.quality_images or None,
        **{name: attrgetter(f"record.{name}") for name in ("converged", "cut_to")},
        **{metric.name: partial(_cost, metric.name) for metric in COST_METRICS if metric.name not in FIRST_COSTS},
        **{name: partial(_timing_fact, name) for name in timing},
        **{name: attrgetter(f"record.{name}") for name in ("backend_version", "checkpoint_sha256", "dataset_digest")},
        "fingerprint": attrgetter("record.environment"),
        "throughput_saturated_validity": attrgetter("saturated_validity"),
        **{name: partial(_known, name) for name in ("artifact_cached", "largest_batch_end")},
        "peak_memory_source": lambda row: _known(f"peak_{MEMORY_OF[row.record.case.device]}_source", row),
        **{f"{name}{end}": partial(_interval, name, BOUNDS[end]) for name in MARGINS for end in ("_low", "_high")},
        "drift_verdict": attrgetter("drift_verdict"),
        **{f"drift_{name}{end}": partial(_drift, name, field) for name in MARGINS for end, field in BOUNDS.items()},
        **{name: partial(_flips, field) for name, field in FLIPS.items()},
        "precision_that_ran": partial(_said, "precision"),
        "evidence": _evidence,
    }


def _cost(name: str, row: Row) -> Cell:
    return row.cost[name]


def _known(name: str, row: Row) -> Cell:
    value: Cell = getattr(row.record.measurement, name, None)
    return value


def _said(name: str, row: Row) -> Cell:
    return evidence_of(row).get(name)


def _evidence(row: Row) -> Cell:
    return "; ".join(f"{name} {value}" for name, value in evidence_of(row).items() if value is not None) or None


def _quality(name: str, row: Row) -> Cell:
    return row.quality(name)


def _interval(metric: str, field: str, row: Row) -> Cell:
    return _field_of(row.record.quality_intervals, metric, field)


def _drift(metric: str, field: str, row: Row) -> Cell:
    return _field_of(row.record.drift.differences if row.record.drift else (), metric, field)


def _field_of(estimates: Iterable[Estimate], metric: str, field: str) -> Cell:
    value: Cell = next((getattr(estimate, field) for estimate in estimates if estimate.metric == metric), None)
    return value


def _flips(field: str, row: Row) -> Cell:
    value: Cell = getattr(row.record.drift, field, None)
    return value


def _timing_fact(name: str, row: Row) -> Cell:
    timing = row.record.timing
    if timing is None:
        return None
    facts: dict[str, Cell] = {
        "samples": int(statistic.counted_samples(timing).size),
        "blocks": len(statistic.counted_blocks(timing)),
        "rejected_blocks": sum(not block.accepted for block in timing.blocks),
        "stop_reason": timing.stop_reason,
    }
    return facts[name]


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Cell]]) -> None:
    """Write *header* and *lines* to the CSV file *path*."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_text(cell) for cell in line] for line in lines)


def _text(cell: Cell) -> str:
    """Return a cell as CSV text: ``true`` and ``false`` for claims, nothing for None and NaN."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return repr(float(cell)) if isinstance(cell, float) else str(cell)
