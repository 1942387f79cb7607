from __future__ import annotations

import csv
from pathlib import Path

from bench.json_lines import append_line
from bench.report import write_page, write_report
from bench.scenario_record import ScenarioRecord
from tests.bench.sample_run import make_case, make_record, write_run

BASE = {"run": "sample", "recorded_at": "2026-01-02T03:04:05Z", "status": "ok"}


def scenario(name: str, **changes: object) -> ScenarioRecord:
    facts = {**BASE, "case": make_case(), "scenario": name, **changes}
    return ScenarioRecord(**facts)  # type: ignore[arg-type]  # a test names its own fields


def page(folder: Path, *records: ScenarioRecord) -> str:
    write_run(folder, [make_record(make_case())])
    for record in records:
        append_line(folder / "scenarios.jsonl", record)
    write_report(folder)
    write_page(folder)  # as a run does, once it knows what its report took
    return (folder / "report.md").read_text(encoding="utf-8")


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [part.strip() for part in line.strip("|").split("|")]


SERVER = scenario(
    "server",
    verdict="VALID",
    metrics={"rate_qps": 62.0, "latency_p50_s": 0.0123, "latency_p99_s": 0.0456, "trials": 5, "foreign_load": 0.01},
    settings={"p99_bound_s": 0.05},
)


def test_nothing_appears_where_no_scenario_was_asked_for(tmp_path: Path) -> None:
    assert "Scenario" not in page(tmp_path)
    assert not (tmp_path / "scenarios.csv").exists()


def test_a_row_shows_rate_latencies_verdict_and_bound(tmp_path: Path) -> None:
    cells = row(page(tmp_path, SERVER), "server")

    assert cells[5:9] == ["12.3", "–", "45.6", "62.0"]  # noqa: RUF001  (what a table shows for no value)
    assert cells[9:] == ["VALID", "p99 bound 50 ms, 5 trials"]


def test_a_row_measured_beside_other_work_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, scenario("idle_gap", metrics={"ratio_to_back_to_back": 1.25, "foreign_load": 0.4}))

    assert row(text, "idle_gap")[-1] == "1.25 x back to back; other work 40 %"


def test_a_burst_shows_the_time_of_the_last_answer(tmp_path: Path) -> None:
    text = page(tmp_path, scenario("burst", metrics={"time_to_last_s": 0.64, "throughput_img_s": 100.0}))

    assert row(text, "burst")[5:9] == ["640", "–", "–", "100"]  # noqa: RUF001


def test_loadgens_reason_stands_beside_an_invalid_row(tmp_path: Path) -> None:
    text = page(tmp_path, scenario("single_stream", verdict="INVALID", reason="Only processed 9 queries."))

    assert "- INVALID, single_stream resnet18 eager fp32 b1: Only processed 9 queries." in text


def test_skipped_and_failed_scenarios_keep_their_reasons(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        scenario("server", status="skipped", reason="mlcommons-loadgen is not installed"),
        scenario("burst", status="failed", reason="the process died"),
    )

    assert "- skipped, server resnet18 eager fp32 b1: mlcommons-loadgen is not installed" in text
    assert "- **failed**, burst resnet18 eager fp32 b1: the process died" in text


def test_the_section_says_that_it_is_no_submission(tmp_path: Path) -> None:
    assert "not MLPerf submissions" in page(tmp_path, SERVER)


def test_the_last_record_of_a_scenario_wins(tmp_path: Path) -> None:
    text = page(tmp_path, scenario("server", status="failed", reason="killed"), SERVER)

    assert "killed" not in text


def test_the_csv_holds_all_digits_and_nothing_for_what_was_not_measured(tmp_path: Path) -> None:
    page(tmp_path, SERVER)

    with (tmp_path / "scenarios.csv").open(encoding="utf-8", newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert line["latency_p50_s"] == "0.0123"
    assert line["latency_p90_s"] == ""
    assert line["set_p99_bound_s"] == "0.05"
