"""What the report says of the machine."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.json_lines import from_json, to_json
from bench.machine import describe_ceilings, device_lines, energy_lines
from bench.machine_facts import Ceilings, DeviceState, Energy, read_ceilings
from bench.records import RunRecord
from bench.report import write_report
from tests.bench.sample_run import make_case, make_record, make_timing, steady, write_run

CEILINGS = Ceilings(
    device="cpu",
    threads=2,
    matmul_flop_s={"fp32": 2.5e11, "bf16": 1.25e12},
    copy_b_s=2.1e10,
    failures={"int8": "RuntimeError: not here"},
)
ABOUT = {"ceilings": json.loads(to_json(CEILINGS))}


def counted(energy: Energy | None, **changes: object) -> RunRecord:
    record = make_record(make_case(), **changes)
    assert record.measurement
    return replace(record, measurement=replace(record.measurement, energy=energy))


def on_gpu(*states: DeviceState) -> RunRecord:
    timing = make_timing([[0.01]] * len(states))
    blocks = tuple(replace(block, device=state) for block, state in zip(timing.blocks, states, strict=True))
    return make_record(make_case(device="cuda"), timing=replace(timing, blocks=blocks))


def report_of(folder: Path, record: RunRecord) -> Path:
    """Return the folder of a run of *record* with `CEILINGS`, its report written."""
    run = write_run(folder, [record])
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**about, **ABOUT}), encoding="utf-8")
    write_report(run)
    return run


def half_way() -> RunRecord:
    """Return a record at 50 % of the roof: 100 images a second of 1.25 GFLOP each, under 250 GFLOP/s."""
    record = make_record(make_case(), timing=steady(0.01))
    assert record.measurement
    return replace(record, measurement=replace(record.measurement, flop_per_image=1.25e9, roof_flop_s=2.5e11))


def test_ceilings_survive_run_json() -> None:
    assert read_ceilings(ABOUT) == CEILINGS


def test_a_run_without_ceilings_has_none() -> None:
    assert read_ceilings({}).matmul_flop_s == {}
    assert describe_ceilings({}) == ""


def test_ceilings_stand_on_one_line() -> None:
    assert describe_ceilings(ABOUT) == "fp32 0.250 TFLOP/s, bf16 1.25 TFLOP/s, copy 21.0 GB/s"


def test_the_page_has_a_section_on_ceilings(tmp_path: Path) -> None:
    text = (report_of(tmp_path, half_way()) / "report.md").read_text(encoding="utf-8")

    assert "- Ceilings: fp32 0.250 TFLOP/s, bf16 1.25 TFLOP/s, copy 21.0 GB/s\n- Versions" in text
    assert "## Ceilings\n\n- This device: fp32 0.250 TFLOP/s" in text
    assert "- Not measured, int8: RuntimeError: not here\n" in text
    assert "- resnet18 (1.25 GFLOP an image) in fp32: 50.0% of the roof at most (eager at batch 1).\n" in text


def test_a_page_without_ceilings_has_no_section_on_them(tmp_path: Path) -> None:
    write_report(write_run(tmp_path, [make_record(make_case())]))

    assert "Ceilings" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_table_has_energy_and_the_fraction_of_the_roof(tmp_path: Path) -> None:
    with (report_of(tmp_path, half_way()) / "table.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)

    assert float(row["fraction_of_roof"]) == 0.5
    assert float(row["flop_per_image"]) == 1.25e9
    assert row["energy_per_image_j"] == ""


def test_absent_energy_gives_its_reason_once() -> None:
    without = counted(Energy(reason="no RAPL package"))

    assert list(energy_lines([without, without])) == ["- Energy of 2 cases: not available: no RAPL package."]


def test_energy_names_its_source_and_its_window() -> None:
    told = [counted(Energy(source="nvml", energy_j=1.0, window_s=window_s, images=10)) for window_s in (10.1, 12.0)]

    (line,) = energy_lines(told)

    assert line.startswith("- Energy of 2 cases: the whole board, by NVML, idle power included, over 10 s of calls")


def test_records_from_before_energy_say_nothing_of_it() -> None:
    assert list(energy_lines([counted(None), make_record(make_case(), measurement=None)])) == []


def test_clocks_and_heat_of_a_gpu_are_told() -> None:
    record = on_gpu(DeviceState(sm_clock_mhz=1905, temperature_c=58), DeviceState(sm_clock_mhz=1980, temperature_c=61))

    (line,) = device_lines([record])

    assert line == "- After each block the clock of the GPU was read: 1905 to 1980 MHz, at most 61 degrees Celsius."


def test_slowed_blocks_are_counted_with_their_reasons() -> None:
    slow = DeviceState(slowdowns=("power cap", "thermal"))
    record = on_gpu(slow, DeviceState(slowdowns=("power cap",)), DeviceState(slowdowns=()), DeviceState())

    (line,) = device_lines([record])

    assert line == "- 2 of 3 blocks were measured on a slowed GPU (power cap in 2, thermal in 1)."


def test_a_cpu_says_nothing_of_a_gpu() -> None:
    assert list(device_lines([make_record(make_case())])) == []


@pytest.mark.parametrize(
    "energy",
    [
        Energy(reason="no RAPL package"),
        Energy(source="rapl", energy_j=500.0, window_s=10.0, images=4000, foreign_load=0.01),
    ],
)
def test_a_record_with_energy_survives_json(energy: Energy) -> None:
    record = counted(energy)

    assert from_json(RunRecord, to_json(record)) == record


def test_a_record_with_the_state_of_a_gpu_survives_json() -> None:
    record = on_gpu(DeviceState(sm_clock_mhz=1980, energy_j=3.5, slowdowns=("power cap",)), DeviceState())

    assert from_json(RunRecord, to_json(record)) == record
