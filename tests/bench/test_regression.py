from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.records import Environment
from lensing_models.command_line import run_main
from tests.benchmarks import regression
from tests.benchmarks.baseline import Baseline, Document, compare, ratios
from tests.benchmarks.regression import SuiteFailedError

ANCHOR = "test_anchor[cpu]"
HERE = Environment(fingerprint="aaaa", hardware={}, versions={"torch": "2.15"}, revision="r1", platform="Linux")
ELSEWHERE = replace(HERE, fingerprint="bbbb")


def document(foreign_load: float = 0.0, **times_s: float) -> Document:
    """Return what pytest-benchmark writes for benchmarks whose fastest calls took *times_s*."""
    rows = {ANCHOR if name == "anchor" else name: time_s for name, time_s in times_s.items()}
    return {
        "benchmarks": [
            {"name": name, "stats": {"min": time, "median": 2 * time}, "extra_info": {"foreign_load": foreign_load}}
            for name, time in rows.items()
        ]
    }


class Machine:
    """A machine whose suite writes chosen documents."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, baselines: Path) -> None:
        self.documents: list[Document] = [document(anchor=0.001, eager=0.01, onnx=0.004)]
        self.second: list[Document] = []
        self.environment = HERE
        self.baseline = baselines / "aaaa" / "baseline.json"
        self.runs = 0
        monkeypatch.setattr(regression, "BASELINES", baselines)
        monkeypatch.setattr(regression, "run_suite", self.run_suite)
        monkeypatch.setattr(regression, "describe_environment", lambda device, threads: self.environment)

    def run_suite(self, device: str, threads: int, repeats: int, plant: float | None) -> list[Document]:
        self.runs += 1
        measured, self.documents = self.documents, self.second or self.documents
        return measured

    def exit_code(self, *argv: str) -> object:
        with pytest.raises(SystemExit) as stop:
            run_main(regression.run, argv)
        return stop.value.code

    def after_baseline(self, **times_s: float) -> None:
        """Save a baseline, then let the suite take *times_s*."""
        assert self.exit_code() == 0
        self.documents = [document(**times_s)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "baselines")


def verdicts(before: dict[str, float], now: dict[str, float]) -> dict[str, str]:
    return {row.name: row.verdict for row in compare(before, now, 1.25)}


def test_a_ratio_is_the_fastest_call_over_the_anchors() -> None:
    repeats = [document(anchor=0.002, eager=0.011), document(anchor=0.004, eager=0.010)]

    found = ratios(repeats, ANCHOR)

    assert found == {"eager": pytest.approx(5.0)}


def test_without_the_anchor_there_is_no_ratio() -> None:
    with pytest.raises(LookupError, match=r"test_anchor\[cpu\].*measured: eager"):
        ratios([document(eager=0.01)], ANCHOR)


@pytest.mark.parametrize(("now", "verdict"), [(5.1, "slower"), (4.9, "same"), (3.3, "same"), (3.1, "faster")])
def test_a_verdict_needs_a_change_beyond_the_threshold(now: float, verdict: str) -> None:
    assert verdicts({"eager": 4.0}, {"eager": now}) == {"eager": verdict}


def test_new_and_missing_benchmarks_are_named_so() -> None:
    before, now = {"eager": 4.0, "onnx": 2.0}, {"trt": 1.0, "eager": 4.0}

    assert verdicts(before, now) == {"trt": "new", "eager": "same", "onnx": "missing"}


def test_nothing_in_common_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="the baseline holds eager; measured: onnx"):
        compare({"eager": 4.0}, {"onnx": 2.0}, 1.25)


def test_a_missing_baseline_is_saved(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.exit_code() == 0

    kept = json.loads(machine.baseline.read_text(encoding="utf-8"))
    assert kept["ratios"] == {"eager": pytest.approx(10.0), "onnx": pytest.approx(4.0)}
    assert kept["medians_s"] == {ANCHOR: 0.002, "eager": 0.02, "onnx": 0.008}
    assert (kept["anchor_s"], kept["fingerprint"], kept["environment"]["revision"]) == (0.001, "aaaa", "r1")
    assert f"saved {machine.baseline}" in capsys.readouterr().out


def test_a_slowdown_beyond_the_threshold_fails(machine: Machine) -> None:
    machine.after_baseline(anchor=0.001, eager=0.015, onnx=0.004)

    assert machine.exit_code() == 1
    assert machine.exit_code("--threshold", "1.6") == 0


def test_what_looks_slower_is_measured_again(machine: Machine) -> None:
    machine.after_baseline(anchor=0.001, eager=0.015, onnx=0.004)
    machine.second = [document(anchor=0.001, eager=0.011, onnx=0.004)]

    assert machine.exit_code() == 0
    assert machine.runs == 3


def test_a_slower_machine_of_equal_ratios_passes(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.after_baseline(anchor=0.003, eager=0.030, onnx=0.012)

    assert machine.exit_code() == 0
    assert "2 same" in capsys.readouterr().out


def test_a_foreign_baseline_is_refused_before_measuring(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.exit_code() == 0
    machine.environment = ELSEWHERE
    capsys.readouterr()

    assert machine.exit_code("--baseline", str(machine.baseline)) == 2

    message = capsys.readouterr().err
    assert "aaaa" in message
    assert "bbbb" in message
    assert message.count("\n") == 1
    assert machine.runs == 1


def test_another_machine_gets_a_baseline_of_its_own(machine: Machine) -> None:
    machine.after_baseline(anchor=0.001, eager=0.05, onnx=0.02)
    machine.environment = ELSEWHERE

    assert machine.exit_code() == 0

    assert {path.parent.name for path in regression.BASELINES.glob("*/baseline.json")} == {"aaaa", "bbbb"}


def test_save_replaces_the_baseline(machine: Machine) -> None:
    machine.after_baseline(anchor=0.001, eager=0.015, onnx=0.004)

    assert machine.exit_code("--save") == 0
    assert machine.exit_code() == 0


def test_comparing_leaves_the_baseline_as_it_was(machine: Machine) -> None:
    machine.after_baseline(anchor=0.001, eager=0.015, onnx=0.004)
    before = machine.baseline.read_bytes()

    machine.exit_code()

    assert machine.baseline.read_bytes() == before


def test_load_and_changed_versions_are_told(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.after_baseline(anchor=0.001, eager=0.01, onnx=0.004, foreign_load=0.4)
    machine.environment = replace(HERE, versions={"torch": "2.16"})

    machine.exit_code()

    told = capsys.readouterr().out
    assert "torch: 2.15 at the baseline, 2.16 now" in told
    assert "contended: load of other processes over the threads in use 0% at the baseline, 40% now" in told


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ratios": 3}'])
def test_a_damaged_baseline_is_a_line(text: str, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.baseline.parent.mkdir(parents=True)
    machine.baseline.write_text(text, encoding="utf-8")

    assert machine.exit_code() == 2

    message = capsys.readouterr().err
    assert f"{machine.baseline}: no baseline" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_a_baseline_holds_positive_ratios(ratio: float) -> None:
    with pytest.raises(ValueError, match="the ratio of eager"):
        Baseline(
            fingerprint="aaaa",
            environment=HERE,
            saved_at="",
            repeats=1,
            anchor_s=0.001,
            foreign_load=0.0,
            medians_s={},
            ratios={"eager": ratio},
        )


@pytest.mark.parametrize(
    "argv",
    [
        ["--threshold", "1"],
        ["--threshold", "nan"],
        ["--repeats", "0"],
        ["--plant", "0.5"],
        ["--plant", "1.5"],
        ["--threads", "0"],
        ["--baseline", "absent.json"],
        ["--baseline", "absent.json", "--save"],
        ["--device", "tpu"],
    ],
)
def test_bad_arguments_are_a_line(argv: list[str], machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.exit_code(*argv) == 2

    assert capsys.readouterr().err.count("\n") == 1
    assert machine.runs == 0


def test_a_failing_suite_is_a_failure(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Sequence[Document]:
        raise SuiteFailedError("1 failed")

    monkeypatch.setattr(regression, "run_suite", fail)

    assert machine.exit_code() == 1
    assert not machine.baseline.exists()
