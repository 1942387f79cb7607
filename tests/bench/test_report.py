from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench import cell
from bench.records import Measurement, RunRecord
from bench.report import build_report, print_tables, write_report
from lensing_models.command_line import run_main
from tests.bench.sample_run import make_case, make_drift, make_record, make_stages, make_timing, steady, write_run

ROOT = Path(__file__).resolve().parents[2]
MARKED = "above\n<!-- results:begin -->\nold\n<!-- results:end -->\nbelow\n"
FIRST_COLUMNS = (
    "task,architecture,backend,precision,batch_size,device,threads,variant,status,reason,validity,latency_p50_s,"
    "latency_p50_low_s,latency_p50_high_s,throughput_img_s,auc,accuracy,mse,on_frontier"
)


def ok(backend: str, latency_s: float, auc: float, **changes: object) -> RunRecord:
    """Return a valid record at *latency_s* and *auc*; changes of the case go by its field names."""
    names = {"task", "architecture", "precision", "batch_size", "device", "threads", "variant"}
    case = make_case(backend=backend, **{name: changes.pop(name) for name in names & changes.keys()})
    return make_record(case, timing=steady(latency_s), **{"quality": {"auc": auc, "accuracy": 0.9}, **changes})


def mass(backend: str, latency_s: float, mse: float) -> RunRecord:
    return make_record(make_case(task="halo_mass", backend=backend), timing=steady(latency_s), quality={"mse": mse})


def skipped(backend: str, reason: str) -> RunRecord:
    return unmeasured(backend, status="skipped", reason=reason)


def failed(backend: str, reason: str) -> RunRecord:
    return unmeasured(backend, status="failed", reason=reason)


def unmeasured(backend: str, **changes: object) -> RunRecord:
    nothing = {"validity": "", "timing": None, "measurement": None, "parity": None, "quality": {}, "quality_images": 0}
    return make_record(make_case(backend=backend), **nothing, **changes)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def table(folder: Path, *records: RunRecord) -> dict[str, dict[str, str]]:
    """Return the rows of ``table.csv`` by backend for a run of *records*."""
    write_report(write_run(folder, records))
    return {row["backend"]: row for row in read_csv(folder / "table.csv")}


def page(folder: Path, *records: RunRecord) -> str:
    write_report(write_run(folder, records))
    return (folder / "report.md").read_text(encoding="utf-8")


def report_main(*arguments: object) -> int:
    from bench.report import main

    with pytest.raises(SystemExit) as exit_info:
        run_main(main, [str(argument) for argument in arguments])
    return int(str(exit_info.value.code))


def test_report_writes_its_four_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98)])

    assert [path.name for path in write_report(run)] == ["table.csv", "pareto.csv", "pareto.png", "report.md"]
    assert (run / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_table_begins_with_the_promised_columns(tmp_path: Path) -> None:
    write_report(write_run(tmp_path, [ok("eager", 0.01, 0.98)]))

    assert (tmp_path / "table.csv").read_text(encoding="utf-8").startswith(FIRST_COLUMNS + ",frontier_kind,")


def test_table_holds_floats_in_full(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.1 + 0.2, 2 / 3))

    assert rows["eager"]["latency_p50_s"] == "0.30000000000000004"
    assert rows["eager"]["auc"] == "0.6666666666666666"


def test_table_counts_samples_and_blocks(tmp_path: Path) -> None:
    timing = make_timing([[0.01] * 5] * 4, rejected=[1])
    rows = table(tmp_path, make_record(make_case(), timing=timing))

    assert [rows["eager"][name] for name in ("samples", "blocks", "rejected_blocks")] == ["15", "3", "1"]


def test_metric_that_does_not_apply_is_empty(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.01, 0.98), skipped("trt", "tensorrt is not installed"))

    assert rows["eager"]["mse"] == ""
    assert rows["eager"]["latency_p99_s"] == ""
    assert [rows["trt"][name] for name in ("latency_p50_s", "auc", "samples", "quality_images")] == [""] * 4


def test_undefined_metric_is_empty(tmp_path: Path) -> None:
    assert table(tmp_path, ok("eager", 0.01, float("nan")))["eager"]["auc"] == ""


def test_last_record_of_a_case_wins_in_its_first_place(tmp_path: Path) -> None:
    rows = table(tmp_path, failed("eager", "killed"), ok("onnx", 0.02, 0.97), ok("eager", 0.01, 0.98))

    assert list(rows) == ["eager", "onnx"]
    assert rows["eager"]["status"] == "ok"


def test_frontier_marks_what_no_other_beats(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, 0.98), ok("onnx", 0.01, 0.97), ok("openvino", 0.02, 0.96))

    assert {name: row["on_frontier"] for name, row in rows.items()} == {
        "eager": "true",
        "onnx": "true",
        "openvino": "false",
    }


def test_frontier_of_an_error_prefers_the_lower(tmp_path: Path) -> None:
    rows = table(tmp_path, mass("eager", 0.01, 5e-5), mass("onnx", 0.02, 7e-5))

    assert [rows[name]["on_frontier"] for name in ("eager", "onnx")] == ["true", "false"]


def test_rows_compete_within_one_batch_size(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.01, 0.98), ok("onnx", 0.02, 0.97, batch_size=32))

    assert rows["onnx"]["on_frontier"] == "true"


def test_skipped_and_failed_rows_have_no_place_on_a_frontier(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.01, 0.98), skipped("trt", "absent"), failed("onnx", "crashed"))

    assert [rows[name]["on_frontier"] for name in ("trt", "onnx")] == ["", ""]


def test_contended_row_does_not_compete_with_a_valid_one(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, 0.97), ok("onnx", 0.01, 0.98, validity="contended"))

    assert [rows[name]["on_frontier"] for name in ("eager", "onnx")] == ["true", "false"]
    assert rows["eager"]["frontier_kind"] == "valid"


def test_a_minority_of_valid_rows_makes_no_frontier(tmp_path: Path) -> None:
    doubtful = [ok(name, 0.01, 0.98, validity="unstable") for name in ("onnx", "openvino")]

    rows = table(tmp_path, ok("eager", 0.03, 0.97), *doubtful)

    assert [rows[name]["on_frontier"] for name in ("eager", "onnx", "openvino")] == ["false", "true", "true"]
    assert rows["onnx"]["frontier_kind"] == "provisional"


def test_frontier_without_a_valid_row_is_provisional(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, 0.97, validity="contended"), ok("onnx", 0.01, 0.96, validity="unstable"))

    assert {row["frontier_kind"] for row in rows.values()} == {"provisional"}


def test_fallback_is_on_no_frontier(tmp_path: Path) -> None:
    rows = table(tmp_path, ok("eager", 0.03, 0.97, validity="contended"), ok("onnx", 0.01, 0.98, validity="fallback"))

    assert [rows[name]["on_frontier"] for name in ("eager", "onnx")] == ["true", "false"]


def test_pareto_lists_each_frontier_by_rank(tmp_path: Path) -> None:
    records = [ok("eager", 0.03, 0.98), ok("onnx", 0.01, 0.97), ok("onnx", 0.04, 0.97, batch_size=32)]
    write_report(write_run(tmp_path, records))

    rows = [(row["frontier"], row["rank"], row["backend"], row["x"]) for row in read_csv(tmp_path / "pareto.csv")]

    assert rows == [
        ("latency@b1", "1", "onnx", "0.01"),
        ("latency@b1", "2", "eager", "0.03"),
        ("latency@b32", "1", "onnx", "0.04"),
        ("throughput", "1", "onnx", "800.0"),
        ("throughput", "2", "eager", repr(32 / (32 * 0.03))),
    ]


def test_page_sorts_by_batch_then_latency(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.03, 0.98), ok("onnx", 0.01, 0.97), ok("openvino", 0.005, 0.97, batch_size=32))

    table_of_results = text.partition("## Evidence")[0]
    lines = [line for line in table_of_results.splitlines() if line.startswith("| resnet18")]

    assert [line.split(" | ")[1] for line in lines] == ["onnx", "eager", "openvino"]


def test_page_says_where_with_what_and_how(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98))

    assert "- Hardware: Test CPU, 2 cores, memory 8.0 GiB" in text
    assert "- Versions: python 3.11.9, torch 2.15.0" in text
    assert "- Date: 2026-01-02T03:00:00Z" in text
    assert "- Command: `python -m bench.run --models all`" in text
    assert "- Revision: abc1234" in text


def test_page_groups_skipped_rows_by_reason(tmp_path: Path) -> None:
    text = page(tmp_path, skipped("trt", "absent"), skipped("openvino", "absent"), ok("eager", 0.01, 0.98))

    assert "- skipped, trt fp32, openvino fp32 (2 cases): absent" in text


def test_page_gives_the_reason_of_a_failed_row_on_one_line(tmp_path: Path) -> None:
    text = page(tmp_path, failed("onnx", "killed\nby signal 9"))

    assert "- **failed**, `substructure/resnet18/onnx/fp32/b1/cpu/t2/default`: killed by signal 9" in text


def test_page_labels_unconverged_networks(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98, converged=False))

    assert "| resnet18 *(unconverged)* | eager |" in text
    assert "says nothing of the network" in text


def test_page_tells_how_far_a_shortened_fit_went(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98, converged=False, cut_to="5 of 12 epochs"))

    assert "| resnet18 *(5 of 12 epochs)* | eager |" in text
    assert "longer, it may be better" in text
    assert "says nothing of the network" not in text


def test_page_counts_rejected_blocks(tmp_path: Path) -> None:
    text = page(tmp_path, make_record(make_case(), timing=make_timing([[0.01]] * 8, rejected=[0, 1])))

    assert "- 2 of 8 blocks (25.0 %) were rejected: 2 for foreign load, 0 because an anchor was slow" in text


def test_page_names_the_images_behind_the_quality(tmp_path: Path) -> None:
    assert "on 300 test images (dataset digest `dddddddddddd`)" in page(tmp_path, ok("eager", 0.01, 0.98))


def test_page_says_that_a_frontier_is_provisional(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98, validity="contended"))

    assert "Frontier at batch 1: *provisional, measured under load*" in text


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ({"resnet18": 0.0075}, "earlier runs say that over 7.65 ms is slow"),
        ({}, "no earlier run of this machine tells whether all of this one was slow"),
    ],
)
def test_page_tells_how_far_the_anchor_drifted(tmp_path: Path, levels: dict[str, float], told: str) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98)])
    (run / "run.json").write_text(
        json.dumps({"anchors": {"resnet18": {"one": 0.008, "two": 0.009}}, "anchor_levels_s": levels}),
        encoding="utf-8",
    )

    write_report(run)

    drift = "- The anchor resnet18, measured among every group, took 8 to 9 ms from group to group"
    assert f"{drift}; {told}." in (run / "report.md").read_text(encoding="utf-8")


def test_page_and_terminal_begin_and_end_with_the_warning_that_no_row_is_valid(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98, validity="contended"), ok("onnx", 0.01, 0.98, validity="unstable"))
    stream = io.StringIO()
    print_tables(build_report(tmp_path), Console(file=stream, width=200))

    warning = "Provisional, measured under load: no row is valid (1 contended, 1 unstable)."
    assert text.split("\n\n")[1].startswith(f"**{warning}")
    assert stream.getvalue().splitlines()[-1].startswith(warning)


def test_one_valid_row_needs_no_warning(tmp_path: Path) -> None:
    assert "no row is valid" not in page(tmp_path, ok("eager", 0.01, 0.98), ok("onnx", 1.0, 0.9, validity="contended"))


def test_page_shows_where_the_time_went(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98)])
    parts = {"fit": 30.0, "build": 9.96, "scenario": 0.04, "other": 0.0}
    (run / "run.json").write_text(json.dumps({"breakdown_s": parts}), encoding="utf-8")

    write_report(run)

    text = (run / "report.md").read_text(encoding="utf-8")
    assert text.endswith(
        "| fit | 30.0 | 75% |\n| build (export, compile, load, first calls) | 10.0 | 25% |\n| scenario | 0.0 | 0% |\n"
        "| other (imports, processes, records) | 0.0 | 0% |\n| all | 40.0 |  |\n"
    )


def test_page_says_once_what_is_deprecated(tmp_path: Path) -> None:
    known = make_record(make_case()).measurement
    assert known
    old = dataclasses.replace(known, evidence={"precision": "fp32", "deprecated": "since torch 2.5"})
    cases = [make_case(backend="torchscript", batch_size=size) for size in (1, 32)]

    text = page(tmp_path, ok("eager", 0.01, 0.98), *(make_record(case, measurement=old) for case in cases))

    assert text.count("- torchscript: its makers call it deprecated since torch 2.5.") == 1
    assert text.count("deprecated") == 1


def test_page_says_that_the_anchor_failed(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98)])
    (run / "run.json").write_text(json.dumps({"anchor_failure": "hung"}), encoding="utf-8")

    write_report(run)

    assert "- **An anchor failed**, and judged no round after that: hung" in (run / "report.md").read_text("utf-8")


def test_page_names_the_cause_of_each_rejection(tmp_path: Path) -> None:
    timing = make_timing([[0.01]] * 8, rejected=[0, 1, 2])
    slow = dataclasses.replace(timing.blocks[0], rejected_for="anchor")

    text = page(
        tmp_path, make_record(make_case(), timing=dataclasses.replace(timing, blocks=(slow, *timing.blocks[1:])))
    )

    assert "3 of 8 blocks (37.5 %) were rejected: 2 for foreign load, 1 because an anchor was slow." in text


def test_run_without_facts_is_told_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98)])
    (run / "run.json").unlink()
    (run / "environment.json").unlink()

    write_report(run)

    assert "- Date: 2026-01-02T03:04:05Z" in (run / "report.md").read_text(encoding="utf-8")


def test_case_that_was_only_checked_is_on_no_frontier(tmp_path: Path) -> None:
    rows = table(tmp_path, make_record(make_case(), timing=None, validity=""))

    assert rows["eager"]["on_frontier"] == "false"


def test_run_without_an_ok_row_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "pareto.png").write_bytes(b"of an earlier report")

    written = write_report(write_run(tmp_path, [skipped("trt", "absent")]))

    assert [path.name for path in written] == ["table.csv", "pareto.csv", "report.md"]
    assert not (tmp_path / "pareto.png").exists()


def test_terminal_table_shows_every_ok_row(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path, [ok("eager", 0.01, 0.98), ok("onnx", 0.02, 0.97), skipped("trt", "no")]))
    stream = io.StringIO()

    print_tables(report, Console(file=stream, width=140))

    text = stream.getvalue()
    assert "10.00 ± 0.00" in text
    assert "20.00 ± 0.00" in text
    assert "p50 [ms]" in text
    assert "substructure: 1 skipped" in text


@pytest.mark.parametrize(
    ("point", "error", "text"),
    [
        (8.53, 0.0412, "8.53 ± 0.04"),
        (8.53, 0.0234, "8.530 ± 0.023"),
        (123.4, 12.3, "123 ± 12"),
        (4646.0, 158.0, "4646 ± 158"),
        (8.53, 0.0001, "8.530 ± 0.001"),
    ],
)
def test_error_decides_the_digits_of_a_latency(point: float, error: float, text: str) -> None:
    assert cell.milliseconds(1e-3 * point, 1e-3 * (point - error), 1e-3 * (point + error)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(6.83e-5, "6.83e-5"), (0.0123, "0.0123"), (1988.4, "1988"), (12.34, "12.3"), (0.0, "0")]
)
def test_three_digits_are_significant(value: float, text: str) -> None:
    assert cell.significant(value) == text


def test_readme_leaves_out_networks_whose_fit_was_cut_short_where_another_was_not(tmp_path: Path) -> None:
    fitted, cut = ok("eager", 0.02, 0.98), ok("onnx", 0.001, 0.51, converged=False, architecture="mobilenetv3_small")
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", [fitted, cut]), "--readme", readme)

    text = readme.read_text(encoding="utf-8")
    assert "| resnet18 | eager fp32 |" in text
    assert "mobilenetv3_small |" not in text
    assert "(run/pareto-converged.png)" in text
    assert (tmp_path / "run" / "pareto-converged.png").read_bytes().startswith(b"\x89PNG")
    assert "Left out, because their fits were cut short to save time: mobilenetv3_small on substructure." in text


def test_readme_shows_networks_whose_fit_was_shortened_and_says_so(tmp_path: Path) -> None:
    cut = ok("onnx", 0.001, 0.9, converged=False, architecture="mobilenetv3_small")
    shortened = ok("eager", 0.02, 0.98, converged=False, cut_to="5 of 12 epochs")
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", [shortened, cut]), "--readme", readme)

    text = readme.read_text(encoding="utf-8")
    assert "| resnet18 *(5 of 12 epochs)* | eager fp32 |" in text
    assert "longer, it may be better" in text
    assert "mobilenetv3_small |" not in text


def test_page_tells_the_self_test(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.0004, 0.98), failed("onnx", "killed")])
    ratio = {"point": 1.05, "low": 1.04, "high": 1.06}
    facts = {
        "overhead_s": 4e-7,
        "bias": {"wait_1ms": 0.002},
        "same": {"point": None, "low": None, "high": None},
        "slowdown": ratio,
        "exact": True,
        "fault": True,
        "contended": 0.75,
        "disturbed": True,
        "complaints": ["something is wrong"],
    }
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "selftest": facts}))

    write_report(run)

    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## Self-test\n\n- **something is wrong**\n- A call that does nothing takes 0.40 us, 0.10% of the" in text
    assert "- Known waits are measured: 1ms +0.20%." in text
    assert "- Equal waits: ratio not known; one 5 % longer: 1.0500 (1.0400 to 1.0600)." in text
    assert "Other work spoilt 75% of its blocks" in text


def test_readme_gets_the_frontier_between_its_markers(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "results" / "run", [ok("eager", 0.03, 0.97), ok("onnx", 0.01, 0.98), ok("openvino", 0.02, 0.9)]
    )
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    assert report_main(run, "--readme", readme) == 0

    text = readme.read_text(encoding="utf-8")
    assert text.startswith("above\n<!-- results:begin -->\n")
    assert text.endswith("\n<!-- results:end -->\nbelow\n")
    assert "| onnx fp32 | 10.00 ± 0.00 | 100 | AUC 0.9800, accuracy 90.0 % | 3.0x |" in text
    assert "openvino" not in text
    assert "old" not in text
    assert "(results/run/pareto.png)" in text


def test_splicing_twice_changes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [ok("eager", 0.03, 0.97)])
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")
    report_main(run, "--readme", readme)
    once = readme.read_text(encoding="utf-8")

    report_main(run, "--readme", readme)

    assert readme.read_text(encoding="utf-8") == once


def test_readme_table_stays_short(tmp_path: Path) -> None:
    records = [
        ok("eager", 0.01 * (step + 1), 0.9 + 0.01 * step, architecture=f"net{step}", batch_size=size)
        for step in range(9)
        for size in (1, 8, 32)
    ]
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", records), "--readme", readme)

    lines = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("| substructure")]
    assert len(lines) == 15
    assert "| net0 |" in lines[0]
    assert "| net8 |" in lines[4]


def test_readme_shows_of_each_network_its_fastest_row_and_its_fastest_that_is_sure(tmp_path: Path) -> None:
    def judged(backend: str, latency_s: float, auc: float, harm: float, **changes: object) -> RunRecord:
        drift = make_drift(auc=(-harm - 1e-4, -harm + 1e-4), accuracy=(-1e-3, 1e-3))
        return dataclasses.replace(ok(backend, latency_s, auc, **changes), drift=drift)

    records = [
        judged("openvino", 0.001, 0.970, 0.0020, architecture="small"),  # cannot tell: at the margin
        judged("onnx", 0.002, 0.971, 0.0001, architecture="small"),
        judged("torchscript", 0.003, 0.972, 0.0, architecture="small"),  # better by less than the margin
        judged("openvino", 0.010, 0.990, 0.0001, architecture="large"),
        judged("eager", 0.020, 0.991, 0.0, architecture="large"),
        skipped("trt", "no GPU"),
    ]
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", records), "--readme", readme)

    text = readme.read_text(encoding="utf-8")
    shown = [line.split("|")[3:5] for line in text.splitlines() if line.startswith("| substructure")]
    assert [[part.strip() for part in pair] for pair in shown] == [
        ["small", "openvino fp32"],
        ["small", "onnx fp32"],
        ["large", "openvino fp32"],
    ]
    assert "2 more are in the run's `pareto.csv`" in text
    assert "TensorRT: not executed on this machine." in text


def test_readme_says_where_the_way_end_to_end_is_longest_beside_the_latency(tmp_path: Path) -> None:
    stages = {"eager": make_stages(whole_s=0.025), "onnx": make_stages(whole_s=0.015)}
    records = [
        ok("eager", 0.02, 0.98, end_to_end=stages["eager"]),
        ok("onnx", 0.01, 0.97, end_to_end=stages["onnx"], architecture="mobilenetv3_small"),
    ]
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", records), "--readme", readme)

    told = "takes up to 1.5 times as long: 15.0 instead of 10.0 ms for mobilenetv3_small on substructure, onnx fp32"
    assert told in readme.read_text(encoding="utf-8")


def test_readme_counts_what_is_not_valid_and_what_was_rejected(tmp_path: Path) -> None:
    disturbed = make_record(
        make_case(backend="onnx"), timing=make_timing([[0.01]] * 4, rejected=[0, 1]), validity="contended"
    )
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")

    report_main(write_run(tmp_path / "run", [ok("eager", 0.01, 0.98), disturbed]), "--readme", readme)

    told = "Of 2 measured rows 1 are not `valid`, 1 of them for other work on the machine; 17 % of all blocks of calls"
    assert told in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["no markers", "<!-- results:end --> <!-- results:begin -->", MARKED + MARKED])
def test_readme_without_one_pair_of_markers_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")

    code = report_main(write_run(tmp_path / "run", [ok("eager", 0.01, 0.98)]), "--readme", readme)

    assert code == 2
    assert "<!-- results:begin -->" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


def test_missing_run_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_main(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [None, "", "{}\n{}\n", '{"schema": 1'])
def test_run_without_readable_records_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_text(content, encoding="utf-8")

    assert report_main(tmp_path) == 2
    captured = capsys.readouterr().err
    assert "records.jsonl" in captured
    assert captured.count("\n") == 1


def test_records_of_the_schema_before_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, [make_record(make_case(), schema=1)])

    assert len(build_report(run).rows) == 1


def test_a_schema_with_unknown_fields_is_refused_by_its_number(tmp_path: Path) -> None:
    run = write_run(tmp_path, [make_record(make_case(), schema=99)])
    path = run / "records.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"run":', '"colour":"red","run":'), encoding="utf-8")

    with pytest.raises(ValueError, match="schema 99"):
        build_report(run)


def test_a_remark_on_a_measured_case_is_shown(tmp_path: Path) -> None:
    text = page(tmp_path, ok("eager", 0.01, 0.98, reason="saturated throughput: out of memory"))

    assert "- remark, `substructure/" in text
    assert "saturated throughput: out of memory" in text


def test_records_of_another_schema_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, [make_record(make_case(), schema=99)])

    with pytest.raises(ValueError, match="schema 99"):
        build_report(run)


def measured_beside(**changes: object) -> RunRecord:
    """Return a record with every cost beside latency: 320 img/s saturated, 2.5 ms from end to end."""
    doubled = dataclasses.replace(make_timing([[0.1] * 4] * 8, required_blocks=8), experiment="throughput")
    known = Measurement(
        build_s=12.5,
        artifact_bytes=6 * 2**20,
        evidence={"precision": "fp32"},
        input_digest="",
        artifact_cached=False,
        load_s=0.625,
        first_inference_s=0.0375,
        peak_host_bytes=96 * 2**20,
        peak_host_source="VmHWM",
        largest_batch=512,
        largest_batch_end="batch 1024: out of memory",
    )
    known = dataclasses.replace(known, **changes)  # type: ignore[arg-type]  # a test names its own fields
    stages = make_stages(
        decode_s=1e-3, preprocess_s=2e-3, copy_in_s=1e-6, compute_s=4e-3, copy_out_s=5e-6, whole_s=0.025
    )
    facts = {"throughput_timing": doubled, "end_to_end": stages, "measurement": known}
    return make_record(make_case(backend="onnx", batch_size=32), **facts)


def test_page_shows_what_a_case_costs_beside_latency(tmp_path: Path) -> None:
    text = page(tmp_path, measured_beside())

    stages = "1.0 + 2.0 + <0.01 + 4.0 + <0.01"
    assert "## Costs beside latency" in text
    assert f"| resnet18 | onnx | fp32 | 32 | 25.0 | {stages} | 12.5 | 0.625 | 37.5 | 96.0 | 6.00 |" in text
    assert "- Largest batch of resnet18, onnx fp32: 512. batch 1024: out of memory." in text


def test_page_shows_saturated_beside_plain_throughput(tmp_path: Path) -> None:
    text = page(tmp_path, measured_beside())

    assert "| throughput [img/s] | saturated [img/s] |" in text
    assert "| 3200 | 320.0 ± 0.0 |" in text


def test_a_build_that_found_its_file_is_no_build(tmp_path: Path) -> None:
    assert "| cached | 0.625 |" in page(tmp_path, measured_beside(artifact_cached=True))


def test_saturated_throughput_of_too_few_blocks_is_doubtful(tmp_path: Path) -> None:
    few = dataclasses.replace(make_timing([[0.1] * 4] * 2, required_blocks=8), experiment="throughput")
    record = dataclasses.replace(measured_beside(), throughput_timing=few)

    assert "| ~320.0 ± 0.0 |" in page(tmp_path / "page", record)
    assert table(tmp_path / "table", record)["onnx"]["throughput_saturated_validity"] == "undersampled"


def test_a_fallback_of_the_saturated_session_alone_is_seen(tmp_path: Path) -> None:
    rows = table(tmp_path, measured_beside(evidence={"precision": "fp32", "saturated_fallback": "on the CPU"}))

    assert rows["onnx"]["throughput_saturated_validity"] == "fallback"


def test_page_of_an_older_run_has_no_costs_beside_latency(tmp_path: Path) -> None:
    assert "## Costs beside latency" not in page(tmp_path, ok("eager", 0.01, 0.98))


def test_table_says_where_memory_was_read(tmp_path: Path) -> None:
    rows = table(tmp_path, measured_beside())

    assert (rows["onnx"]["peak_memory_bytes"], rows["onnx"]["peak_memory_source"]) == (str(96 * 2**20), "VmHWM")


def test_report_is_rebuilt_where_no_runtime_is_installed(tmp_path: Path) -> None:
    run = write_run(tmp_path, [ok("eager", 0.01, 0.98), mass("onnx", 0.02, 6e-5)])
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'timm', 'onnxruntime', 'openvino', 'tensorrt'):\n"
        "            raise ImportError(name + ' is not installed')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from bench.report import main\n"
        f"sys.exit(main([{str(run)!r}]))\n"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert answer.returncode == 0, answer.stderr
    assert (run / "report.md").exists()


def test_the_page_names_the_sky_of_each_task(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [ok("eager", 0.01, 0.9), mass("eager", 0.02, 1e-4)])
    skies = {"substructure": "archive_fit", "halo_mass": "model_i"}
    (run / "run.json").write_text(json.dumps({"skies": skies}), encoding="utf-8")

    write_report(run)

    page = (run / "report.md").read_text(encoding="utf-8")
    lines = {
        line.split(":")[0].removeprefix("- "): line for line in page.splitlines() if "quality comes through" in line
    }
    assert "of sky `archive_fit`" in lines["substructure"]
    assert "of sky `model_i`" in lines["halo_mass"]


def test_the_page_names_networks_that_were_fitted_on_other_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [ok("eager", 0.01, 0.9), mass("eager", 0.02, 1e-4)])
    facts = {
        "skies": {"substructure": "my cutouts", "halo_mass": "archive_fit"},
        "fitted_on": {"substructure/resnet18": "archive_fit", "halo_mass/resnet18": "archive_fit"},
    }
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")

    write_report(run)

    told = [line for line in (run / "report.md").read_text().splitlines() if "fitted on other images" in line]
    assert len(told) == 1
    assert "of `my cutouts`: resnet18 on `archive_fit`" in told[0]
