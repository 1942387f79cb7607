from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import cell
from bench.drift_facts import Drift, Estimate
from bench.readme import short_table
from bench.records import RunRecord
from bench.report import build_report, print_tables, write_report
from bench.table import make_rows
from tests.bench.sample_run import make_case, make_drift, make_record, steady, write_run

SAME = make_drift(flips=0, auc=(0.0, 0.0), accuracy=(0.0, 0.0))
LOST = make_drift(flips=180, auc=(-0.03, -0.01), accuracy=(-0.03, -0.01))
DOUBTFUL = make_drift(flips=4, auc=(-0.003, 0.001), accuracy=(-0.01, 0.0))


def ok(backend: str, latency_s: float, drift: Drift | None, **changes: object) -> RunRecord:
    names = {"precision", "batch_size", "task"}
    case = make_case(backend=backend, **{name: changes.pop(name) for name in names & changes.keys()})
    return make_record(case, timing=steady(latency_s), drift=drift, **changes)


def page(folder: Path, *records: RunRecord) -> str:
    write_report(write_run(folder, records))
    return (folder / "report.md").read_text(encoding="utf-8")


def table(folder: Path, *records: RunRecord) -> dict[str, dict[str, str]]:
    write_report(write_run(folder, records))
    with (folder / "table.csv").open(encoding="utf-8", newline="") as stream:
        return {row["backend"]: row for row in csv.DictReader(stream)}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", -0.0033, "-0.33 %"),
        ("auc", 0.00123, "+0.0012"),
        ("mse", 0.0213, "+2.1 %"),
        ("auc", -0.00001, "0"),
        ("mse", 0.0, "0 %"),
    ],
)
def test_a_difference_has_its_sign_and_no_more_digits_than_it_means(name: str, value: float, text: str) -> None:
    assert cell.difference(name, value) == text


def test_a_worse_row_stays_in_the_table_and_is_on_no_frontier(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, SAME), ok("onnx", 0.01, LOST), ok("openvino", 0.02, DOUBTFUL))

    assert {name: (row["drift_verdict"], row["on_frontier"]) for name, row in rows.items()} == {
        "eager": ("non-inferior", "false"),
        "onnx": ("worse", "false"),
        "openvino": ("cannot tell", "true"),
    }


def test_worse_rows_are_no_candidates_whose_want_of_validity_counts(tmp_path: Path) -> None:
    spoilt = [ok(name, 0.01, LOST, validity="contended") for name in ("onnx", "openvino")]

    assert table(tmp_path, ok("eager", 0.03, SAME), *spoilt)["eager"]["frontier_kind"] == "valid"


def test_a_worse_row_is_on_no_provisional_frontier_either(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, SAME, validity="unstable"), ok("onnx", 0.01, LOST, validity="unstable"))

    assert [(row["on_frontier"], row["frontier_kind"]) for row in rows.values()] == [
        ("true", "provisional"),
        ("false", ""),
    ]


def test_table_holds_differences_flips_and_intervals(tmp_path: Path) -> None:
    intervals = (Estimate(metric="auc", point=0.98, low=0.97, high=0.99),)
    row = table(tmp_path, ok("onnx", 0.01, LOST, quality_intervals=intervals))["onnx"]

    # 60 net of 3,000, of which 180 differ: 1.96 sqrt(180 - 60^2 / 3000) / 3000 is 0.0087. What was recorded is wider.
    shown = [float(row[f"drift_accuracy{end}"]) for end in ("", "_low", "_high")]
    assert shown == pytest.approx([-0.02, -0.0287, -0.0113], abs=4e-4)
    assert [row[name] for name in ("flips", "flips_lost", "flips_gained", "mcnemar_p")] == ["180", "120", "60", "0.25"]
    assert [row[name] for name in ("auc_low", "auc_high", "accuracy_low", "drift_mse")] == ["0.97", "0.99", "", ""]


def test_the_margin_of_the_run_decides(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("onnx", 0.01, LOST)])
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    settings = {"margin": {"accuracy": 0.05, "auc": 0.05}}
    (run / "run.json").write_text(json.dumps({**about, "settings": settings}), encoding="utf-8")

    report = build_report(run)

    assert [row.drift_verdict for row in report.rows.values()] == ["non-inferior"]


def test_page_marks_each_row_with_its_verdict(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.03, SAME), ok("onnx", 0.01, LOST), ok("openvino", 0.02, DOUBTFUL))

    assert "| 93.6 % | = | valid |" in text
    assert "| 93.6 % | **worse**, -0.0200 | valid |" in text
    assert "| 93.6 % | cannot tell, -0.0010 | valid |" in text
    assert "Batch 1: 1 of 3 rows answer worse than eager fp32; no frontier has them." in text


def test_page_has_a_line_for_each_session_on_drift(tmp_path: Path) -> None:
    text = page(tmp_path, ok("onnx", 0.01, LOST), ok("onnx", 0.1, LOST, batch_size=32))

    line = "| resnet18 | onnx | fp32 | **worse** | -0.0200 (-0.0300 to -0.0100) | -2.00 % (-2.90 % to -1.14 %) |"
    assert text.count(f"{line} 180 | 120 | 60 | 0.25 |") == 1
    assert "Margins: accuracy 0.50 %, AUC 0.0020, MSE 2.0 %." in text


def test_page_on_drift_of_a_mass_has_no_flips(tmp_path: Path) -> None:
    text = page(tmp_path, ok("onnx", 0.01, make_drift(mse=(0.001, 0.003)), task="halo_mass"))

    assert "| network | backend | precision | verdict | MSE |" in text
    assert "| resnet18 | onnx | fp32 | non-inferior | +0.2 % (+0.1 % to +0.3 %) |" in text


def test_an_older_run_is_told_without_drift(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, None))

    assert "## Drift" not in text
    assert "| AUC | accuracy | validity |" in text


def test_terminal_shows_the_verdict(tmp_path: Path) -> None:
    stream = io.StringIO()

    print_tables(
        build_report(write_run(tmp_path, [ok("eager", 0.03, SAME), ok("onnx", 0.01, LOST)])),
        Console(file=stream, width=200),
    )

    assert "worse, -0.0200" in stream.getvalue()


def test_readme_names_the_verdict_beside_the_quality(tmp_path: Path) -> None:
    text = short_table(build_report(write_run(tmp_path, [ok("eager", 0.03, SAME)])), tmp_path)

    assert "| AUC 0.9871, accuracy 93.6 %, non-inferior |" in text
    assert "`non-inferior`: its answers" in text


def test_rows_are_judged_anew_at_other_margins() -> None:
    record = ok("onnx", 0.01, dataclasses.replace(LOST))

    verdicts = [
        next(iter(make_rows([record], {"accuracy": margin, "auc": margin}, {})[0].values())).drift_verdict
        for margin in (0.001, 0.025, 0.1)
    ]

    assert verdicts == ["worse", "cannot tell", "non-inferior"]
