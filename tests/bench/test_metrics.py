from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest

from bench.machine_facts import Energy
from bench.metrics import COST_METRICS, CostMetric, known_cost_metrics
from bench.records import Measurement
from tests.bench.sample_run import make_case, make_record, make_stages, make_timing

MEASUREMENT = Measurement(
    build_s=2.5,
    artifact_bytes=1234,
    evidence={},
    input_digest="",
    load_s=0.75,
    first_inference_s=0.125,
    peak_host_bytes=4096,
    peak_device_bytes=8192,
    largest_batch=512,
    energy=Energy(source="nvml", energy_j=500.0, window_s=10.0, images=4000),
    flop_per_image=2e9,
    roof_flop_s=1e12,
    gpu_samples_s=(0.002, 0.001, 0.003),
)
STAGES = make_stages(decode_s=0.1, preprocess_s=0.2, copy_in_s=0.3, compute_s=0.4, copy_out_s=0.5, whole_s=2.0)


def test_names_are_unique() -> None:
    assert len(known_cost_metrics()) == len(COST_METRICS)


@pytest.mark.parametrize("metric", COST_METRICS, ids=lambda metric: metric.name)
def test_no_metric_applies_to_a_case_that_was_not_measured(metric: CostMetric) -> None:
    record = make_record(make_case(), status="skipped", timing=None, measurement=None)

    assert metric.compute(record) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_p50_s", 0.25),
        ("latency_p50_low_s", 0.25),
        ("latency_p50_high_s", 0.25),
        ("throughput_img_s", 128.0),
        ("build_s", 2.5),
        ("artifact_bytes", 1234),
        ("throughput_saturated_img_s", 256.0),
        ("throughput_saturated_low_img_s", 256.0),
        ("throughput_saturated_high_img_s", 256.0),
        ("end_to_end_p50_s", 2.0),
        ("end_to_end_decode_s", 0.1),
        ("end_to_end_preprocess_s", 0.2),
        ("end_to_end_copy_in_s", 0.3),
        ("end_to_end_compute_s", 0.4),
        ("end_to_end_copy_out_s", 0.5),
        ("gpu_p50_s", 0.002),
        ("load_s", 0.75),
        ("first_inference_s", 0.125),
        ("peak_memory_bytes", 4096),
        ("largest_batch", 512),
        ("energy_per_image_j", 0.125),
        ("flop_per_image", 2e9),
        ("fraction_of_roof", 2e9 * 128.0 / 1e12),
    ],
)
def test_metric_of_a_steady_case(name: str, value: float) -> None:
    timing = make_timing([[0.25] * 4] * 3)
    doubled = dataclasses.replace(make_timing([[0.125] * 4] * 3), experiment="throughput")
    facts = {"timing": timing, "throughput_timing": doubled, "measurement": MEASUREMENT, "end_to_end": STAGES}
    record = make_record(make_case(batch_size=32), **facts)

    assert known_cost_metrics()[name].compute(record) == pytest.approx(value, rel=1e-12)


def test_memory_on_a_gpu_is_that_of_the_gpu() -> None:
    record = make_record(make_case(device="cuda"), measurement=MEASUREMENT)

    assert known_cost_metrics()["peak_memory_bytes"].compute(record) == 8192


@pytest.mark.parametrize("name", ["throughput_saturated_img_s", "end_to_end_p50_s", "load_s", "largest_batch"])
def test_what_an_older_record_lacks_does_not_apply(name: str) -> None:
    assert known_cost_metrics()[name].compute(make_record(make_case())) is None


@pytest.mark.parametrize(
    "energy",
    [
        Energy(reason="no RAPL package"),
        Energy(source="rapl", energy_j=500.0, window_s=10.0, images=4000, reason="other people's work"),
    ],
)
def test_energy_that_is_not_that_of_the_case_is_not_told(energy: Energy) -> None:
    record = make_record(make_case(), measurement=replace(MEASUREMENT, energy=energy))

    assert known_cost_metrics()["energy_per_image_j"].compute(record) is None


@pytest.mark.parametrize("unknown", ["flop_per_image", "roof_flop_s"])
def test_without_operations_or_ceiling_there_is_no_fraction(unknown: str) -> None:
    measurement = replace(MEASUREMENT, **{unknown: None})  # type: ignore[arg-type]  # either is optional

    record = make_record(make_case(), measurement=measurement)

    assert known_cost_metrics()["fraction_of_roof"].compute(record) is None


def test_tails_do_not_apply_to_few_samples() -> None:
    record = make_record(make_case(), timing=make_timing([[0.25] * 63]))

    assert known_cost_metrics()["latency_p90_s"].compute(record) is None
    assert known_cost_metrics()["latency_p99_s"].compute(record) is None


def test_tails_of_many_samples_are_observed_values() -> None:
    record = make_record(make_case(), timing=make_timing([[float(value) for value in range(1, 1001)]]))

    assert known_cost_metrics()["latency_p90_s"].compute(record) == 900.0
    assert known_cost_metrics()["latency_p99_s"].compute(record) == 990.0


def test_bounds_of_one_block_are_nan() -> None:
    record = make_record(make_case(), timing=make_timing([[0.25]]))

    assert math.isnan(known_cost_metrics()["latency_p50_low_s"].compute(record) or 0.0)


def test_session_without_a_file_has_no_artifact_bytes() -> None:
    measurement = Measurement(build_s=1.0, artifact_bytes=None, evidence={}, input_digest="")

    assert known_cost_metrics()["artifact_bytes"].compute(make_record(make_case(), measurement=measurement)) is None
