"""The section on evidence, and the columns of the table: what ran, of every row."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.records import Measurement, RunRecord, Scalar
from bench.report import write_report
from tests.bench.sample_run import make_case, make_record, write_run


def said(evidence: dict[str, Scalar], batch_size: int = 1, asked: str = "int8") -> RunRecord:
    measurement = Measurement(build_s=1.0, artifact_bytes=None, evidence=evidence, input_digest="")
    case = make_case(architecture="resnet18", backend="onnx", precision=asked, batch_size=batch_size)
    return make_record(case, measurement=measurement)


def lines_of(run: Path) -> list[str]:
    _, _, section = (run / "report.md").read_text(encoding="utf-8").partition("## Evidence\n")
    return [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]


def test_rows_that_say_the_same_share_a_line_and_lists_are_shortened(tmp_path: Path) -> None:
    facts: dict[str, Scalar] = {"precision": "int8", "kept_fp32": "2 of 9 layers: a b", "sweep_file": "x.json"}
    rows = [said({**facts, "threads": 2, "saturated_threads": 1}, size) for size in (1, 8)]
    run = write_run(tmp_path, [*rows, said({"precision": "fp32", "threads": 2}, asked="bf16")])

    write_report(run)

    assert lines_of(run)[2:] == [
        "| resnet18 | onnx | int8 | int8 | 2 | kept fp32 2 of 9 layers; threads 2 |",
        "| resnet18 | onnx | bf16 | fp32 | 1 | threads 2 |",
    ]


def test_the_table_has_what_each_row_says_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path, [said({"precision": "int8", "kept_fp32": "2 of 9 layers: a b", "streams": 1})])

    write_report(run)

    with (run / "table.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["evidence"] == "precision int8; kept_fp32 2 of 9 layers: a b; streams 1"
    assert row["precision_that_ran"] == "int8"


def test_reasons_are_told_whole_and_what_nobody_knows_is_not(tmp_path: Path) -> None:
    facts: dict[str, Scalar] = {"precision": "fp32", "threads": None, "not_captured": "ONNX Runtime: it may not wait"}
    run = write_run(tmp_path, [said(facts, asked="fp32")])

    write_report(run)

    assert lines_of(run)[2:] == ["| resnet18 | onnx | fp32 | fp32 | 1 | not captured ONNX Runtime: it may not wait |"]
    assert "threads None" not in (run / "table.csv").read_text(encoding="utf-8")


def test_a_run_whose_sessions_said_nothing_has_no_such_section(tmp_path: Path) -> None:
    run = write_run(tmp_path, [said({})])

    write_report(run)

    assert "## Evidence" not in (run / "report.md").read_text(encoding="utf-8")
