"""What a case costs: one row a metric, read from a record. A new cost metric is one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench import statistic
from bench.records import RunRecord, Timing


@dataclass(frozen=True, kw_only=True, slots=True)
class CostMetric:
    """A cost of a case, with its unit and the direction that is better.

    Attributes:
        name: Column name in the tables, e.g. ``latency_p50_s``.
        unit: Unit of the value.
        better: ``higher`` or ``lower``.
        compute: The value of a record; None or NaN where the metric does not apply.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    compute: Callable[[RunRecord], float | None]


def _timed(read: Callable[[Timing], float | None]) -> Callable[[RunRecord], float | None]:
    """Return *read* for records, giving None where nothing was timed."""
    return lambda record: None if record.timing is None else read(record.timing)


def _throughput(record: RunRecord) -> float | None:
    return None if record.timing is None else statistic.throughput(record.timing, record.case.batch_size)


def _build(record: RunRecord) -> float | None:
    return None if record.measurement is None else record.measurement.build_s


def _artifact(record: RunRecord) -> float | None:
    return None if record.measurement is None else record.measurement.artifact_bytes


def _energy(record: RunRecord) -> float | None:
    energy = record.measurement.energy if record.measurement else None
    if energy is None or energy.energy_j is None or energy.reason:
        return None
    return energy.energy_j / energy.images


def _flop(record: RunRecord) -> float | None:
    return None if record.measurement is None else record.measurement.flop_per_image


def _fraction_of_roof(record: RunRecord) -> float | None:
    flop, images_s = _flop(record), _throughput(record)
    roof = record.measurement.roof_flop_s if record.measurement else None
    return flop * images_s / roof if flop and images_s and roof else None


COST_METRICS: tuple[CostMetric, ...] = (
    CostMetric(
        name="latency_p50_s",
        unit="s",
        better="lower",
        compute=_timed(lambda timing: statistic.latency_p50(timing).point),
    ),
    CostMetric(
        name="latency_p50_low_s",
        unit="s",
        better="lower",
        compute=_timed(lambda timing: statistic.latency_p50(timing).low),
    ),
    CostMetric(
        name="latency_p50_high_s",
        unit="s",
        better="lower",
        compute=_timed(lambda timing: statistic.latency_p50(timing).high),
    ),
    CostMetric(name="throughput_img_s", unit="img/s", better="higher", compute=_throughput),
    CostMetric(
        name="latency_p90_s",
        unit="s",
        better="lower",
        compute=_timed(lambda timing: statistic.latency_percentile(timing, 90)),
    ),
    CostMetric(
        name="latency_p99_s",
        unit="s",
        better="lower",
        compute=_timed(lambda timing: statistic.latency_percentile(timing, 99)),
    ),
    CostMetric(name="build_s", unit="s", better="lower", compute=_build),
    CostMetric(name="artifact_bytes", unit="B", better="lower", compute=_artifact),
    CostMetric(name="energy_per_image_j", unit="J", better="lower", compute=_energy),
    CostMetric(name="flop_per_image", unit="FLOP", better="lower", compute=_flop),
    CostMetric(name="fraction_of_roof", unit="1", better="higher", compute=_fraction_of_roof),
)


def known_cost_metrics() -> dict[str, CostMetric]:
    """Return every cost metric by name, in the order of its rows."""
    return {metric.name: metric for metric in COST_METRICS}
