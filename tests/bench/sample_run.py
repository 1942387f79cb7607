"""A made-up run: records whose every number is known beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.drift_facts import Drift, Estimate
from bench.json_lines import append_line, to_json
from bench.records import Block, Case, Environment, Measurement, Parity, RunRecord, Stages, Timing

QUALITY = {
    "substructure": {"auc": 0.9871, "accuracy": 0.9363, "log_loss": 0.21},
    "halo_mass": {"mse": 6.8e-5, "mse_log10": 0.012, "r2": 0.68, "bias": -1e-4, "scatter": 0.008},
}


def make_case(**changes: object) -> Case:
    facts: dict[str, object] = {
        "task": "substructure",
        "architecture": "resnet18",
        "backend": "eager",
        "precision": "fp32",
        "batch_size": 1,
        "device": "cpu",
        "threads": 2,
    }
    return Case(**{**facts, **changes})  # type: ignore[arg-type]  # a test names its own fields


def make_timing(
    blocks: Sequence[Sequence[float]],
    *,
    rejected: Iterable[int] = (),
    required_blocks: int = 2,
    settled: bool = True,
) -> Timing:
    lost = set(rejected)
    return Timing(
        warmup_blocks=2,
        settled=settled,
        stop_reason="target_ci",
        required_blocks=required_blocks,
        blocks=tuple(
            Block(
                samples_s=tuple(samples),
                foreign_load=0.5 if index in lost else 0.01,
                accepted=index not in lost,
                round=index,
            )
            for index, samples in enumerate(blocks)
        ),
    )


def steady(latency_s: float) -> Timing:
    """Return a timing whose every sample is *latency_s*, so that median and interval are that."""
    return make_timing([[latency_s] * 4] * 8, required_blocks=8)


def make_record(case: Case, **changes: object) -> RunRecord:
    """Return an ok, valid record of *case* at 10 ms with *changes*."""
    quality = QUALITY[case.task]
    record = RunRecord(
        run="sample",
        recorded_at="2026-01-02T03:04:05Z",
        case=case,
        status="ok",
        validity="valid",
        checkpoint_sha256="c" * 64,
        dataset_digest="d" * 64,
        converged=True,
        backend_version="1.0",
        measurement=Measurement(
            build_s=1.5, artifact_bytes=46_000_000, evidence={"precision": case.precision}, input_digest="e" * 64
        ),
        parity=Parity(images=256, error=1e-6, tolerance=1e-4, passed=True),
        quality=quality,
        quality_images=300,
        primary_metric=next(iter(quality)),
        timing=steady(0.01),
        environment="f" * 12,
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]  # a test names its own fields


def make_drift(flips: int = 3, **intervals: tuple[float, float]) -> Drift:
    """Return a drift of these differences; of three flips two are lost and one is gained."""
    differences = tuple(
        Estimate(metric=name, point=(low + high) / 2, low=low, high=high) for name, (low, high) in intervals.items()
    )
    if "mse" in intervals:
        return Drift(images=300, differences=differences)
    gained = flips // 3
    return Drift(
        images=3000,
        differences=differences,
        flips=flips,
        lost=flips - gained,
        gained=gained,
        flipped=tuple(range(flips)),
        mcnemar_p=0.25,
    )


def make_stages(**medians_s: float) -> Stages:
    """Return stages of three calls each, the middle one as given, a second else."""
    names = ("decode_s", "preprocess_s", "copy_in_s", "compute_s", "copy_out_s", "whole_s")
    samples = {name: (0.5 * medians_s.get(name, 1.0), 1e3, medians_s.get(name, 1.0)) for name in names}
    return Stages(**samples, foreign_load=0.01, accepted=True)


def write_run(folder: Path, records: Iterable[RunRecord]) -> Path:
    """Write *records* with environment and run facts as a run's folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        append_line(folder / "records.jsonl", record)
    environment = Environment(
        fingerprint="f" * 12,
        hardware={"processor": "Test CPU", "cores": 2, "memory_bytes": 8 * 2**30},
        versions={"python": "3.11.9", "torch": "2.15.0"},
        revision="abc1234",
        platform="Linux-6.1-x86_64",
    )
    (folder / "environment.json").write_text(to_json(environment), encoding="utf-8")
    facts = {"run": "sample", "command": "python -m bench.run --models all", "preset": "quick"}
    (folder / "run.json").write_text(json.dumps({**facts, "started_at": "2026-01-02T03:00:00Z"}), encoding="utf-8")
    return folder
