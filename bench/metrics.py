"""What a case costs: one row a metric, read from a record. A new cost metric is one row here."""

from __future__ import annotations

import math
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


def _saturated(bound: str) -> Callable[[RunRecord], float | None]:
    """Return a reader of saturated throughput, or of a *bound* of its interval."""

    def read(record: RunRecord) -> float | None:
        timing = record.throughput_timing
        if timing is None:
            return None
        value: float = getattr(statistic.throughput_interval(timing, record.case.batch_size), bound)
        return value

    return read


def _stage(name: str) -> Callable[[RunRecord], float | None]:
    """Return a reader of the median time of one stage of the way through all, or of the whole."""
    return lambda record: None if record.end_to_end is None else statistic.median(getattr(record.end_to_end, name))


def _known(name: str) -> Callable[[RunRecord], float | None]:
    """Return a reader of the field *name* of a record's measurement."""
    return lambda record: None if record.measurement is None else getattr(record.measurement, name)


def _gpu(record: RunRecord) -> float | None:
    return None if record.measurement is None else statistic.median(record.measurement.gpu_samples_s)


def _peak_memory(record: RunRecord) -> float | None:
    if record.measurement is None:
        return None
    on_gpu = record.case.device == "cuda"
    return record.measurement.peak_device_bytes if on_gpu else record.measurement.peak_host_bytes


def _build(record: RunRecord) -> float | None:
    return None if record.measurement is None else record.measurement.build_s


def _build_spread(record: RunRecord) -> float | None:
    """Return by what share the slowest build's latency exceeds the fastest one's; None with one build."""
    if record.timing is None or record.timing.builds < 2:
        return None
    medians = statistic.build_medians(record.timing)
    # One of which no block counts leaves the spread unknown.
    return None if any(map(math.isnan, medians)) else max(medians) / min(medians) - 1


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
    CostMetric(name="build_spread", unit="1", better="lower", compute=_build_spread),
    CostMetric(name="artifact_bytes", unit="B", better="lower", compute=_artifact),
    CostMetric(name="throughput_saturated_img_s", unit="img/s", better="higher", compute=_saturated("point")),
    CostMetric(name="throughput_saturated_low_img_s", unit="img/s", better="higher", compute=_saturated("low")),
    CostMetric(name="throughput_saturated_high_img_s", unit="img/s", better="higher", compute=_saturated("high")),
    CostMetric(name="end_to_end_p50_s", unit="s", better="lower", compute=_stage("whole_s")),
    CostMetric(name="end_to_end_decode_s", unit="s", better="lower", compute=_stage("decode_s")),
    CostMetric(name="end_to_end_preprocess_s", unit="s", better="lower", compute=_stage("preprocess_s")),
    CostMetric(name="end_to_end_copy_in_s", unit="s", better="lower", compute=_stage("copy_in_s")),
    CostMetric(name="end_to_end_compute_s", unit="s", better="lower", compute=_stage("compute_s")),
    CostMetric(name="end_to_end_copy_out_s", unit="s", better="lower", compute=_stage("copy_out_s")),
    CostMetric(name="gpu_p50_s", unit="s", better="lower", compute=_gpu),
    CostMetric(name="load_s", unit="s", better="lower", compute=_known("load_s")),
    CostMetric(name="first_inference_s", unit="s", better="lower", compute=_known("first_inference_s")),
    CostMetric(name="peak_memory_bytes", unit="B", better="lower", compute=_peak_memory),
    CostMetric(name="largest_batch", unit="images", better="higher", compute=_known("largest_batch")),
    CostMetric(name="energy_per_image_j", unit="J", better="lower", compute=_energy),
    CostMetric(name="flop_per_image", unit="FLOP", better="lower", compute=_flop),
    CostMetric(name="fraction_of_roof", unit="1", better="higher", compute=_fraction_of_roof),
)


def known_cost_metrics() -> dict[str, CostMetric]:
    """Return every cost metric by name, in the order of its rows."""
    return {metric.name: metric for metric in COST_METRICS}
