from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.json_lines import from_json, to_json
from bench.level import LEVELS, REMEMBERED, estimate, recall, remember, review_rows, run_levels
from bench.records import Environment, RunRecord, Timing
from bench.report import write_report
from tests.bench.sample_run import make_case, make_record, make_timing, steady, write_run

HERE = Environment(fingerprint="f", hardware={}, versions={"torch": "2.14"}, revision="r", platform="p")


def met(
    backend: str, validity: str = "valid", timing: Timing | None = None, run: str = "sample", **anchor_s: float
) -> RunRecord:
    """Return a record, in a group of its own, in whose rounds the anchors took *anchor_s*, known to half a percent."""
    lows = {name: 0.995 * time_s for name, time_s in anchor_s.items()}
    timed = dataclasses.replace(timing or steady(0.01), anchor_s=anchor_s, anchor_low_s=lows, group=backend)
    return make_record(make_case(backend=backend), timing=timed, validity=validity, run=run)


def validities(*records: RunRecord, **remembered: float) -> list[str]:
    return [record.validity for record in review_rows(records, remembered)]


def test_a_row_that_met_an_anchor_surely_slower_than_others_did_is_contended() -> None:
    quiet = [met(backend, resnet18=0.0100) for backend in ("eager", "onnx")]

    assert validities(*quiet, met("openvino", resnet18=0.0102)) == ["valid"] * 3
    assert validities(*quiet, met("openvino", resnet18=0.0104)) == ["valid", "valid", "contended"]


def test_either_anchor_is_enough() -> None:
    quiet = [met(backend, mobilenetv3_small=0.004, resnet18=0.010) for backend in ("eager", "onnx")]

    for slow in ({"mobilenetv3_small": 0.004, "resnet18": 0.011}, {"mobilenetv3_small": 0.005, "resnet18": 0.010}):
        assert validities(*quiet, met("openvino", **slow)) == ["valid", "valid", "contended"]


def test_a_run_that_was_slow_throughout_is_known_by_earlier_ones() -> None:
    rows = met("eager", resnet18=0.0110), met("onnx", resnet18=0.0110)

    assert validities(*rows) == ["valid", "valid"]
    assert validities(*rows, resnet18=0.0100) == ["contended", "contended"]
    assert validities(*rows, resnet18=0.0120) == ["valid", "valid"]


def test_a_fallback_stays_one_and_an_old_record_what_it_was() -> None:
    rows = met("eager", resnet18=0.010), met("onnx", "fallback", resnet18=0.012), met("openvino")

    assert validities(*rows, resnet18=0.010) == ["valid", "fallback", "valid"]


def test_a_time_without_a_lower_end_judges_nothing() -> None:
    lonely = met("eager", resnet18=0.012)
    assert lonely.timing
    lonely = dataclasses.replace(lonely, timing=dataclasses.replace(lonely.timing, anchor_low_s={"resnet18": math.nan}))

    assert validities(from_json(RunRecord, to_json(lonely)), resnet18=0.010) == ["valid"]


#: Of its eight blocks six were rejected.
FEW = make_timing([[0.01]] * 8, rejected=range(2, 8), required_blocks=8)


def test_rows_of_one_group_count_once_and_a_quarter_of_the_groups_is_the_level() -> None:
    crowd = [
        dataclasses.replace(met("eager", resnet18=0.012), case=make_case(backend="eager", batch_size=size))
        for size in range(1, 9)
    ]

    others = [met(backend, resnet18=time_s) for backend, time_s in (("onnx", 0.010), ("trt", 0.011), ("aoti", 0.013))]

    assert run_levels([*crowd, others[0]]) == {"resnet18": 0.010}
    assert run_levels([*crowd, *others, met("openvino", resnet18=0.014)]) == {"resnet18": 0.011}


def test_a_group_of_few_blocks_counts_with_what_the_anchor_can_surely_do() -> None:
    few = met("openvino", timing=FEW, resnet18=0.010)

    # 0.5 % above, as its lower end is below.
    assert run_levels([few]) == {"resnet18": pytest.approx(0.010 / 0.995)}
    # A run of which the quiet part was short: the rows of the other one were measured on a machine slowed by half.
    assert validities(met("eager", resnet18=0.015), few) == ["contended", "valid"]


@pytest.mark.parametrize("low_s", [math.nan, 0.001])
def test_a_group_of_few_blocks_tells_nothing_where_they_do_not_agree(low_s: float) -> None:
    few = met("openvino", timing=FEW, resnet18=0.010)
    assert few.timing
    few = dataclasses.replace(few, timing=dataclasses.replace(few.timing, anchor_low_s={"resnet18": low_s}))

    assert validities(met("eager", resnet18=0.015), from_json(RunRecord, to_json(few))) == ["valid", "valid"]


def test_the_estimate_is_a_mean_of_logarithms_with_a_one_sided_interval() -> None:
    blocks = make_timing([[math.exp(-1)], [1.0], [math.exp(1)]]).blocks

    found = estimate(blocks)

    assert found.point_s == pytest.approx(1.0)
    assert found.low_s == pytest.approx(math.exp(-stats.t.ppf(0.95, df=2) / math.sqrt(3)))
    assert math.isnan(estimate(blocks[:1]).low_s)


def test_levels_are_remembered_for_the_same_machine_and_torch(tmp_path: Path) -> None:
    path = tmp_path / "cache" / LEVELS
    for number, time_s in enumerate((0.010, 0.011, 0.013)):
        remember(path, HERE, [met("eager", run=str(number), resnet18=time_s)], "2026-01-01", begun_at="")

    assert recall(path, HERE) == {"resnet18": 0.011}
    assert recall(path, dataclasses.replace(HERE, fingerprint="g")) == {}
    assert recall(path, dataclasses.replace(HERE, versions={"torch": "2.15"})) == {}
    assert recall(tmp_path / "missing", HERE) == {}


@pytest.mark.parametrize(("time_s", "validity"), [(0.0114, "valid"), (0.0120, "contended")])
def test_two_runs_tell_a_gross_slowdown_only_and_a_resumed_one_is_one(
    tmp_path: Path, time_s: float, validity: str
) -> None:
    path = tmp_path / LEVELS
    # The slower one: of two, the faster run counts.
    remember(path, HERE, [met("eager", run="a", resnet18=0.014)], "2026-01-01", begun_at="")
    for run in ("b", "b", "b"):
        remember(path, HERE, [met("eager", run=run, resnet18=0.010)], "2026-01-01", begun_at="")

    # A run that was slow from beginning to end.
    assert validities(met("eager", resnet18=time_s), **recall(path, HERE)) == [validity]

    remember(path, HERE, [met("eager", run="c", resnet18=0.010)], "2026-01-01", begun_at="")
    assert validities(met("eager", resnet18=0.0104), **recall(path, HERE)) == ["contended"]


def test_runs_of_one_name_are_several_where_they_began_at_other_times(tmp_path: Path) -> None:
    path = tmp_path / LEVELS
    for begun_at in ("10:00", "11:00", "12:00"):
        rows = [met("eager", resnet18=0.010)]
        remember(path, HERE, rows, "2026-01-01", begun_at=begun_at)
        # Resumed, with a case more.
        remember(path, HERE, [*rows, met("onnx", resnet18=0.010)], "2026-01-01", begun_at=begun_at)
        assert (recall(path, HERE)["resnet18"] > 0.010) == (begun_at != "12:00")


def test_a_machine_that_has_become_slower_for_good_is_accepted_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / LEVELS
    for number, time_s in enumerate((*[0.010] * REMEMBERED, *[0.012] * REMEMBERED)):
        remember(path, HERE, [met("eager", run=str(number), resnet18=time_s)], "2026-01-01", begun_at="")
        if number == REMEMBERED:
            assert recall(path, HERE) == {"resnet18": pytest.approx(0.010)}

    assert recall(path, HERE) == {"resnet18": pytest.approx(0.012)}


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / LEVELS
    for run in "abc":
        remember(path, HERE, [met("eager", run=run, resnet18=0.010)], "2026-01-01", begun_at="")
        with path.open("a", encoding="utf-8") as stream:
            stream.write('{"run": "to\n')

    assert recall(path, HERE) == {"resnet18": 0.010}


def quiet_run(draw: np.random.Generator, noise: float, drift: float = 1.0) -> list[RunRecord]:
    """Return the rows of a run of 14 groups, each of eight blocks of the anchor with *noise*, half of them slowed.

    The anchor's process is faster or slower than another one's by 1 % for good.
    """
    luck, rows = math.exp(0.01 * draw.standard_normal()), []
    for group in range(14):
        slow = luck * (drift if group % 2 else 1.0)
        blocks = make_timing([[0.01 * slow * math.exp(noise * draw.standard_normal())] for _ in range(8)]).blocks
        found = estimate(blocks)
        timing = dataclasses.replace(
            steady(0.01), anchor_s={"a": found.point_s}, anchor_low_s={"a": found.low_s}, group=str(group)
        )
        rows.append(make_record(make_case(batch_size=group + 1), timing=timing, validity="valid"))
    return rows


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.03])
def test_few_rows_of_quiet_runs_are_called_contended(noise: float) -> None:
    draw = np.random.default_rng(0)
    remembered = {"a": 0.01}

    rows = [row for _ in range(60) for row in review_rows(quiet_run(draw, noise), remembered)]

    assert sum(row.validity == "contended" for row in rows) / len(rows) < 0.05


def test_most_rows_of_groups_slowed_by_five_percent_are_called_contended() -> None:
    draw = np.random.default_rng(0)

    rows = [row for _ in range(30) for row in review_rows(quiet_run(draw, 0.02, drift=1.05), {})]

    slowed = [row.validity for row in rows if not row.case.batch_size % 2]
    assert slowed.count("contended") / len(slowed) > 0.9


def test_the_page_says_how_many_rows_met_a_slow_anchor(tmp_path: Path) -> None:
    run = write_run(tmp_path, [met("eager", resnet18=0.010), met("onnx", resnet18=0.010), met("trt", resnet18=0.012)])

    write_report(run)

    text = (run / "report.md").read_text(encoding="utf-8")
    assert "- In the rounds of 1 row an anchor was more than 2 % slower than it can be" in text
