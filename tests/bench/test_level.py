from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.level import LEVELS, REMEMBERED, lowest_times, recall, remember, review_rows
from bench.records import Environment, RunRecord, Timing
from bench.report import write_report
from tests.bench.sample_run import make_case, make_record, make_timing, steady, write_run

HERE = Environment(fingerprint="f", hardware={}, versions={"torch": "2.14"}, revision="r", platform="p")


def met(backend: str, validity: str = "valid", timing: Timing | None = None, **anchor_s: float) -> RunRecord:
    """Return a record in whose rounds the anchors took *anchor_s*."""
    timed = dataclasses.replace(timing or steady(0.01), anchor_s=anchor_s)
    return make_record(make_case(backend=backend), timing=timed, validity=validity)


def validities(*records: RunRecord, **remembered: float) -> list[str]:
    return [record.validity for record in review_rows(records, remembered)]


def test_a_row_that_met_an_anchor_slower_than_another_row_did_is_contended() -> None:
    assert validities(met("eager", resnet18=0.0100), met("onnx", resnet18=0.0102)) == ["valid", "valid"]
    assert validities(met("eager", resnet18=0.0100), met("onnx", resnet18=0.0104)) == ["valid", "contended"]


def test_either_anchor_is_enough() -> None:
    quiet = met("eager", mobilenetv3_small=0.004, resnet18=0.010)

    assert validities(quiet, met("onnx", mobilenetv3_small=0.004, resnet18=0.011)) == ["valid", "contended"]
    assert validities(quiet, met("onnx", mobilenetv3_small=0.005, resnet18=0.010)) == ["valid", "contended"]


def test_a_run_that_was_slow_throughout_is_known_by_earlier_ones() -> None:
    rows = met("eager", resnet18=0.0110), met("onnx", resnet18=0.0111)

    assert validities(*rows) == ["valid", "valid"]
    assert validities(*rows, resnet18=0.0100) == ["contended", "contended"]
    assert validities(*rows, resnet18=0.0120) == ["valid", "valid"]


def test_a_fallback_stays_one_and_an_old_record_what_it_was() -> None:
    rows = met("eager", resnet18=0.010), met("onnx", "fallback", resnet18=0.012), met("openvino")

    assert validities(*rows) == ["valid", "fallback", "valid"]


def test_a_row_of_few_blocks_sets_no_level() -> None:
    few = make_timing([[0.01]] * 8, rejected=range(1, 8), required_blocks=8)

    assert lowest_times([met("eager", timing=few, resnet18=0.009), met("onnx", resnet18=0.010)]) == {"resnet18": 0.010}


def test_levels_are_remembered_for_the_same_machine_and_torch(tmp_path: Path) -> None:
    path = tmp_path / "cache" / LEVELS
    remember(path, HERE, [met("eager", resnet18=0.010), met("onnx", resnet18=0.011)], "2026-01-01")

    assert recall(path, HERE) == {"resnet18": 0.010}
    assert recall(path, dataclasses.replace(HERE, fingerprint="g")) == {}
    assert recall(path, dataclasses.replace(HERE, versions={"torch": "2.15"})) == {}
    assert recall(tmp_path / "missing", HERE) == {}


def test_a_machine_that_has_become_slower_for_good_is_accepted_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / LEVELS
    for time_s in (0.010, *[0.012] * REMEMBERED):
        remember(path, HERE, [met("eager", resnet18=time_s)], "2026-01-01")

    assert recall(path, HERE) == {"resnet18": pytest.approx(0.012)}


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    (tmp_path / LEVELS).write_text("{\n{}\n", encoding="utf-8")

    assert recall(tmp_path / LEVELS, HERE) == {}


def test_the_page_says_how_many_rows_met_a_slow_anchor(tmp_path: Path) -> None:
    run = write_run(tmp_path, [met("eager", resnet18=0.010), met("onnx", resnet18=0.012)])

    write_report(run)

    text = (run / "report.md").read_text(encoding="utf-8")
    assert "- 1 row is `contended` because an anchor was more than 3% slower" in text
