"""Cells as a reader wants them: milliseconds, sensible digits, an error beside its value."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bench.records import Case
from bench.table import Place, Row

# Shown beside a task's primary metric where the task has them; `table.csv` holds all.
SHOWN_QUALITY = ("auc", "accuracy", "mse", "r2")
MARKS = {"valid": "●", "provisional": "○", "": ""}
LABELS = {"auc": "AUC", "mse": "MSE", "mse_log10": "MSE of log10", "r2": "R²", "log_loss": "log loss"}
NOTHING = "–"  # noqa: RUF001  (an en dash is what a table shows for no value)


def label(name: str) -> str:
    """Return what a metric is called in a text."""
    return LABELS.get(name, name.replace("_", " "))


def significant(value: float, digits: int = 3) -> str:
    """Return *value* with about *digits* significant digits: plain, or as 6.8e-5 below 0.001."""
    if math.isnan(value):
        return NOTHING
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - _magnitude(value))}f}"


def with_error(point: float, low: float, high: float) -> str:
    """Return a value and half its interval, rounded as in `milliseconds`; the plain value without one."""
    return milliseconds(1e-3 * point, 1e-3 * low, 1e-3 * high)


def milliseconds(point_s: float, low_s: float, high_s: float) -> str:
    """Return a latency and its interval in ms, e.g. ``8.53 ± 0.04``; the plain value without one.

    The error is rounded as the Review of Particle Physics does (introduction, section 5.3): to two
    digits if they are below 35, else to one; the value never shows more than four digits for it.
    """
    point, error = 1e3 * point_s, 1e3 * (high_s - low_s) / 2
    if math.isnan(point) or math.isnan(error):
        return significant(point)
    finest = 3 - _magnitude(point)
    digits = 1 if error * 10.0 ** -_magnitude(error) < 3.55 else 0
    decimals = max(0, min(digits - _magnitude(error) if error else finest, finest))
    # An error below the last digit shown is rounded up to it, never down to nothing.
    return f"{point:.{decimals}f} ± {max(error, 10.0**-decimals if error else 0.0):.{decimals}f}"


def score(name: str, value: float) -> str:
    """Return the value of a quality metric: accuracy in percent, AUC with four decimals."""
    if math.isnan(value):
        return NOTHING
    if name == "accuracy":
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if name == "auc" else significant(value)


def difference(name: str, value: float) -> str:
    """Return the difference of a judged metric with its sign; of accuracy in points, of an MSE in percent of it."""
    if math.isnan(value):
        return NOTHING
    factor, decimals, unit = {"accuracy": (100, 2, " %"), "mse": (100, 1, " %")}.get(name, (1, 4, ""))
    rounded = round(factor * value, decimals)
    return f"{rounded:+.{decimals}f}{unit}" if rounded else f"0{unit}"


def drift(row: Row) -> str:
    """Return the verdict on the answers of *row* and the difference of its primary metric; ``=`` if nothing moved."""
    found = row.record.drift
    if found is None:
        return NOTHING
    shown = {difference(one.metric, bound) for one in found.differences for bound in (one.point, one.low, one.high)}
    if row.drift_verdict == "non-inferior" and not found.flips and shown <= {"0", "0 %"}:
        return "="
    primary = [one for one in found.differences if one.metric == row.record.primary_metric]
    verdict = f"**{row.drift_verdict}**" if row.drift_verdict == "worse" else row.drift_verdict
    return ", ".join([verdict, *(difference(one.metric, one.point) for one in primary)])


def shown_quality(rows: Iterable[Row]) -> list[str]:
    """Return the names of the metrics that a table of *rows* shows, the primary one first."""
    records = [row.record for row in rows if row.record.quality]
    primary = [record.primary_metric for record in records if record.primary_metric]
    wanted = dict.fromkeys((*primary, *SHOWN_QUALITY))
    return [name for name in wanted if any(name in record.quality for record in records)]


def machine(place: Place) -> str:
    """Return device and threads, e.g. ``cpu, 2 threads``."""
    _, device, threads = place
    return f"{device}, {threads} {'thread' if threads == 1 else 'threads'}"


def network(row: Row) -> str:
    """Return the network of *row*, labelled where its fit did not run to the end."""
    record = row.record
    return record.case.network + (f" *({record.cut_to or 'unconverged'})*" if record.converged is False else "")


def runtime(row: Row) -> str:
    """Return the backend of *row*, with its variant where that is not the plain one."""
    return name_runtime(row.record.case)


def name_runtime(case: Case) -> str:
    """Return the backend of *case*, with its variant where that is not the plain one."""
    return case.backend if case.runtime_variant == "default" else f"{case.backend} ({case.runtime_variant})"


def latency(row: Row) -> str:
    """Return the latency of *row* in ms with its interval."""
    return milliseconds(*(row.cost[f"latency_p50{bound}_s"] for bound in ("", "_low", "_high")))


def _magnitude(value: float) -> int:
    """Return the power of ten of the first significant digit; 0 for zero."""
    return math.floor(math.log10(abs(value))) if value else 0
