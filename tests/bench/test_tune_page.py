from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.json_lines import append_line
from bench.knob import Try, Tuning, untuned
from bench.records import RunRecord
from bench.report import write_report
from tests.bench.sample_run import make_case, make_record, make_timing, steady, write_run

PLAIN = make_case(backend="openvino", batch_size=32)
TUNED = dataclasses.replace(PLAIN, variant="tuned")
TRIES = (
    Try(settings={"threads": 1}, ratio=1.5, ratio_low=1.4, ratio_high=1.6),
    Try(settings={"streams": 2}, ratio=0.8, ratio_low=0.79, ratio_high=0.81, is_taken=True),
    Try(settings={"streams": 2, "cpu_pinning": False}, ratio=float("nan"), ratio_low=0, ratio_high=0, failure="hung"),
)


def page(folder: Path, *records: RunRecord, tuning: Tuning) -> str:
    written = write_run(folder, records)
    append_line(written / "tuning.jsonl", tuning)
    write_report(written)
    return (written / "report.md").read_text(encoding="utf-8")


def test_a_tuned_row_tells_its_settings_its_gain_and_every_try(tmp_path: Path) -> None:
    together = [dataclasses.replace(steady(time_s), group="one") for time_s in (0.1, 0.08)]
    records = [make_record(PLAIN, timing=together[0]), make_record(TUNED, timing=together[1])]

    text = page(tmp_path, *records, tuning=Tuning(case=TUNED.key, settings={"streams": 2}, tries=TRIES))

    (line,) = [line for line in text.splitlines() if line.startswith("| resnet18") and "hung" in line]
    assert "| 32 | streams=2 | 1.25 (1.25 to 1.25) |" in line
    assert "threads=1 1.500; streams=2 0.800 (taken); cpu_pinning=False, streams=2 failed: hung" in line
    assert "openvino (tuned)" in text


def test_a_gain_over_a_row_of_other_rounds_has_no_interval(tmp_path: Path) -> None:
    apart = [dataclasses.replace(steady(time_s), group=str(time_s)) for time_s in (0.1, 0.08)]
    records = [make_record(PLAIN, timing=apart[0]), make_record(TUNED, timing=apart[1])]

    text = page(tmp_path, *records, tuning=Tuning(case=TUNED.key, settings={"streams": 2}, tries=TRIES))

    assert "| 32 | streams=2 | ~1.25 |" in text


def test_what_nothing_made_faster_has_no_gain(tmp_path: Path) -> None:
    skipped = dataclasses.replace(
        make_record(TUNED), status="skipped", reason="nothing faster", measurement=None, timing=None
    )
    records = [make_record(PLAIN, timing=steady(0.1)), skipped]

    text = page(tmp_path, *records, tuning=Tuning(case=TUNED.key, settings={}, tries=TRIES[:1]))

    assert "| 32 | default | – |" in text  # noqa: RUF001  (what a table shows for no value)


def test_a_page_without_tuning_has_no_such_section(tmp_path: Path) -> None:
    write_report(write_run(tmp_path, [make_record(PLAIN, timing=steady(0.1))]))

    assert "## Tuning" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("variant", "plain"),
    [("tuned", "default"), ("optimized+tuned", "optimized"), ("tuned+graph", "graph"), ("default", "default")],
)
def test_the_untuned_case_differs_in_nothing_else(variant: str, plain: str) -> None:
    case = make_case(variant=variant)

    assert untuned(case) == dataclasses.replace(case, variant=plain)


def test_builds_are_told_with_how_far_they_differ(tmp_path: Path) -> None:
    timing = make_timing([[0.010] * 4, [0.011] * 4, [0.012] * 4, [0.010] * 4] * 2)
    blocks = tuple(dataclasses.replace(block, process=block.round % 4) for block in timing.blocks)
    three = dataclasses.replace(timing, blocks=blocks, builds=3)

    write_report(write_run(tmp_path, [make_record(make_case(backend="trt", device="cuda"), timing=three)]))

    # Process 3 runs build 0 again.
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "3 builds of resnet18, trt fp32, batch 1: p50 10.0, 11.0, 12.0 ms; the slowest is 20.0 % over" in text
