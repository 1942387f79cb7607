"""Arrivals: through sessions that wait a known time, and LoadGen's verdict from its own logs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from bench.answer import Opened
from bench.arrival import Arrivals, Outcome, read_metrics
from bench.backends.base import LocalSession
from bench.control import TRUTHS, ControlSession
from bench.json_lines import read_lines
from bench.loadgen import LoadGenTest, read_log
from bench.measure import BlockPlan, Clock
from bench.process import Oversight, WorkerError
from bench.records import Scalar
from bench.run_folder import RunFolder
from bench.scenario import (
    EFFORTS,
    SCENARIOS,
    Effort,
    PlannedScenario,
    burst_calls,
    calibrate,
    parse_scenarios,
    plan_scenarios,
    round_up,
    search_rate,
    suits,
)
from bench.scenario_pass import ScenarioPass
from bench.scenario_record import ScenarioRecord
from lensing_models.preset import PRESETS
from tests.bench.sample_run import make_case, make_record, steady

SHORT = Effort(duration_s=0.3, most_s=5.0, trials=2, requests=3, repeats=2)
LOGS = Path(__file__).parent / "loadgen"
#: A wait is never measured shorter; how much longer is the machine's affair, within reason.
SLACK = 20.0

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed"
)


def drive(
    variant: str,
    scenario: str,
    logs: Path,
    batch_size: int = 1,
    effort: Effort = SHORT,
    recorded_s: float = 0.0,
    kind: type[ControlSession] = ControlSession,
) -> Outcome:
    """Return what *scenario* of LoadGen gives for a control whose every call waits a known time."""
    case = make_case(backend="control", variant=variant, batch_size=batch_size, threads=1)
    session = kind(TRUTHS[variant], None, case)
    images = torch.zeros(8, 1, 4, 4)
    clock = Clock(session, [images[:batch_size]], BlockPlan(block_s=0.02, calls=2, discards=0, warmup_s=0.0))
    record = make_record(case, timing=steady(recorded_s or TRUTHS[variant].wait_s))
    (plan,) = plan_scenarios([record], [scenario], effort)
    return Arrivals(session=session, case=case, clock=clock, images=images, logs=logs).run(scenario, plan.settings)


@needs_loadgen
def test_single_stream_takes_the_known_wait(tmp_path: Path) -> None:
    found = drive("wait_5ms", "single_stream", tmp_path)

    assert 5e-3 <= found.metrics["latency_p50_s"] <= SLACK * 5e-3
    assert found.metrics["latency_p50_s"] <= found.metrics["latency_p90_s"] <= found.metrics["latency_p90_estimate_s"]


@needs_loadgen
def test_a_query_of_eight_images_takes_eight_waits_at_batch_1(tmp_path: Path) -> None:
    found = drive("wait_1ms", "multi_stream", tmp_path, effort=replace(SHORT, most_s=1.0))

    assert 8e-3 <= found.metrics["latency_p50_s"] <= SLACK * 8e-3


@needs_loadgen
def test_a_test_that_is_cut_short_is_invalid_and_says_why(tmp_path: Path) -> None:
    found = drive("wait_1ms", "multi_stream", tmp_path, effort=replace(SHORT, most_s=0.5))

    assert found.verdict == "INVALID"
    assert "Need to process at least 662 queries" in found.reason
    assert "latency_p99_s" not in found.metrics


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return drive("wait_1ms", "server", tmp_path_factory.mktemp("server"))


@needs_loadgen
def test_a_server_answers_no_faster_than_one_call_after_the_other(server: Outcome) -> None:
    rate_qps = server.metrics.get("rate_qps", 0.0)  # none was valid if the machine is too busy

    assert (rate_qps > 0) == (server.verdict == "VALID")
    assert rate_qps < 1 / 1e-3
    assert server.metrics["trials"] == SHORT.trials


@needs_loadgen
def test_the_p99_of_a_valid_server_is_within_its_bound(server: Outcome) -> None:
    assert server.metrics["latency_p50_s"] >= 1e-3
    assert (server.metrics["latency_p99_s"] <= 5e-3) >= (server.verdict == "VALID")


@needs_loadgen
def test_offline_is_no_faster_than_a_batch_a_wait(tmp_path: Path) -> None:
    found = drive("wait_1ms", "offline", tmp_path, batch_size=3)

    assert 0 < found.metrics["throughput_img_s"] <= 3 / 1e-3


@needs_loadgen
def test_the_batch_of_an_asynchronous_session_lives_until_it_is_answered(tmp_path: Path) -> None:
    alive: list[bool] = []

    class Borrowing(ControlSession):
        """Reads the images where they lie, as OpenVINO's requests do."""

        def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
            self._borrowed = weakref.ref(images)
            return super().infer(images, slot)

        def synchronize(self, slot: int = 0) -> None:
            alive.append(self._borrowed() is not None)

    drive("wait_1ms", "offline", tmp_path, batch_size=3, kind=Borrowing)

    assert alive
    assert all(alive)


@needs_loadgen
def test_loadgen_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drive("wait_1ms", "single_stream", tmp_path)

    assert capfd.readouterr().out == ""


class FakeTime:
    """A clock that only sleeping and the session advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s


class Steps(LocalSession):
    """Takes the times that are given, one after the other, again and again."""

    def __init__(self, clock: FakeTime, times_s: list[float]) -> None:
        self._clock, self._times_s = clock, itertools.cycle(times_s)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        self._clock.now += next(self._times_s)
        return torch.zeros(1, 1)

    def evidence(self) -> dict[str, Scalar]:
        return {}


def drive_steps(
    scenario: str, times_s: list[float], batch_size: int, monkeypatch: pytest.MonkeyPatch, most_s: float = 5.0
) -> dict[str, float]:
    """Return what *scenario* of ours gives for a session that takes *times_s*."""
    clock = FakeTime()
    monkeypatch.setattr("bench.measure.time", clock)
    case, session, images = make_case(batch_size=batch_size), Steps(clock, times_s), torch.zeros(1, 1, 4, 4)
    timer = Clock(session, [images], BlockPlan(block_s=0.02, calls=2, discards=0, warmup_s=0.0))
    record = make_record(case, timing=steady(times_s[0]))
    (plan,) = plan_scenarios([record], [scenario], replace(SHORT, most_s=most_s))
    arrivals = Arrivals(session=session, case=case, clock=timer, images=images, logs=Path("unused"))
    return dict(arrivals.run(scenario, plan.settings).metrics)


def test_a_burst_takes_a_call_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drive_steps("burst", [0.005], 8, monkeypatch)

    assert found == pytest.approx({"time_to_last_s": 8 * 0.005, "throughput_img_s": 64 / 0.04, "bursts": 2})


def test_no_burst_follows_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drive_steps("burst", [0.005], 1, monkeypatch, most_s=0.3)["bursts"] == 1


def test_idling_is_not_part_of_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drive_steps("idle_gap", [0.005], 1, monkeypatch)

    assert found == pytest.approx({"latency_p50_s": 0.005, "back_to_back_p50_s": 0.005, "ratio_to_back_to_back": 1.0})


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 64), (32, 2), (48, 2), (64, 1), (128, 1)])
def test_a_ragged_last_batch_of_a_burst_is_a_call_too(batch_size: int, calls: int) -> None:
    assert burst_calls(batch_size) == calls


def test_a_recorded_valid_log_is_read_as_it_is() -> None:
    test = read_log(LOGS / "valid.txt")

    assert (test.verdict, test.reason) == ("VALID", "")
    assert read_metrics("single_stream", test) == {
        "queries": 873,
        "latency_p50_s": 1003515e-9,
        "latency_p90_s": 1006709e-9,
        "latency_p99_s": 4961310e-9,
        "latency_p90_estimate_s": 1009904e-9,
        "throughput_img_s": pytest.approx(1e9 / 1144928),
    }


def test_a_recorded_overload_is_invalid_for_loadgens_reasons() -> None:
    test = read_log(LOGS / "invalid.txt")

    assert test.verdict == "INVALID"
    assert test.reason.startswith("Reduce target QPS to improve latency. Run unsuccessful. Processed 1982 queries.")
    assert read_metrics("server", test)["rate_qps"] == pytest.approx(962.262)


def test_a_recorded_error_is_a_reason_and_too_few_samples_have_no_p99() -> None:
    test = read_log(LOGS / "short.txt")

    assert test.verdict == "INVALID"
    assert "Decrease the expected latency" in test.reason
    assert "Ran out of generated queries" in test.reason
    assert "latency_p99_s" not in read_metrics("single_stream", test)


def test_a_log_without_a_verdict_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no verdict"):
        read_log(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("batch_size", "names"),
    [
        (1, ["single_stream", "multi_stream", "server", "idle_gap", "burst"]),
        (32, ["offline", "burst"]),
    ],
)
def test_a_case_runs_what_its_batch_size_can_answer(batch_size: int, names: list[str]) -> None:
    planned = plan_scenarios([make_record(make_case(batch_size=batch_size))], list(SCENARIOS), SHORT)

    assert [plan.scenario for plan in planned] == names


def test_what_was_not_timed_is_not_driven() -> None:
    record = make_record(make_case(), status="failed", timing=None)

    assert plan_scenarios([record], list(SCENARIOS), SHORT) == []


@pytest.mark.parametrize(
    ("scenario", "batch_size", "images", "told"),
    [
        ("single_stream", 1, 1, {"expected_latency_s": 0.008}),
        ("multi_stream", 1, 8, {"expected_latency_s": 0.064}),
        ("offline", 32, 1, {"expected_img_s": 4000.0}),
        ("server", 1, 1, {"most_rate_qps": 100.0}),
    ],
)
def test_loadgen_is_told_four_fifths_of_the_latency(
    scenario: str, batch_size: int, images: int, told: dict[str, float]
) -> None:
    assert calibrate(scenario, 0.01, batch_size, images) == pytest.approx(told)


@needs_loadgen
def test_a_latency_recorded_beside_other_work_leaves_loadgen_queries_enough(tmp_path: Path) -> None:
    found = drive("wait_1ms", "single_stream", tmp_path, recorded_s=0.1)

    assert "Ran out of generated queries" not in found.reason
    assert float(str(found.settings["expected_latency_s"])) < 0.08


@pytest.mark.parametrize(("p99_s", "bound_s"), [(None, 0.05), (0.123, 0.123)])
def test_the_bound_is_the_given_one_or_five_times_the_latency(p99_s: float | None, bound_s: float) -> None:
    (plan,) = plan_scenarios([make_record(make_case(), timing=steady(0.01))], ["server"], SHORT, p99_s)

    assert plan.settings["p99_bound_s"] == bound_s


@pytest.mark.parametrize(("value", "rounded"), [(0.05, 0.05), (0.0432, 0.05), (0.0032, 0.004), (0.91, 1.0), (7.0, 7.0)])
def test_a_bound_is_rounded_up_to_one_digit(value: float, rounded: float) -> None:
    assert round_up(value) == rounded


def test_a_server_that_no_trial_could_judge_is_skipped() -> None:
    (plan,) = plan_scenarios([make_record(make_case(), timing=steady(0.2))], ["server"], SHORT)

    assert "662 queries take 132 s or more at the recorded latency; this preset allows 5 s a trial" in plan.skip_reason


def test_without_loadgen_its_scenarios_are_skipped_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    planned = plan_scenarios([make_record(make_case())], list(SCENARIOS), SHORT)

    reasons = {plan.scenario: plan.skip_reason for plan in planned}
    remedy = "mlcommons-loadgen is not installed; pip install 'lensing-bench[mlperf]'"
    assert {name for name, reason in reasons.items() if reason == remedy} == {"single_stream", "multi_stream", "server"}
    assert reasons["idle_gap"] == reasons["burst"] == ""


def test_an_unknown_scenario_gets_a_suggestion() -> None:
    with pytest.raises(LookupError, match="Did you mean 'server'"):
        parse_scenarios("sever")


def test_no_scenario_is_the_default_and_all_are_all() -> None:
    assert parse_scenarios("") == []
    assert parse_scenarios("all") == list(SCENARIOS)
    assert parse_scenarios("burst,server") == ["server", "burst"]


def test_every_preset_has_its_effort() -> None:
    assert EFFORTS.keys() == PRESETS.keys()


def test_some_case_runs_each_scenario() -> None:
    assert all(any(suits(name, make_case(batch_size=size)) for size in (1, 32)) for name in SCENARIOS)


@pytest.mark.parametrize("limit", [3.0, 50.0, 99.9])
def test_bisection_finds_the_highest_valid_rate(limit: float) -> None:
    def attempt(rate: float) -> LoadGenTest:
        return LoadGenTest(verdict="VALID" if rate <= limit else "INVALID", reason="", facts={})

    tried = search_rate(attempt, 0.0, 100.0, trials=8)

    best = max(rate for rate, test in tried if test.is_valid)
    assert limit - 100 / 2**8 <= best <= limit


def test_where_no_rate_is_valid_bisection_goes_down_to_the_least() -> None:
    hopeless = LoadGenTest(verdict="INVALID", reason="", facts={})

    tried = search_rate(lambda rate: hopeless, 10.0, 90.0, trials=5)

    assert [rate for rate, _ in tried] == [50.0, 30.0, 20.0, 15.0, 12.5]


@dataclass
class Script:
    """Stands for workers: notes what is asked, and fails at one scenario."""

    asked: list[str]
    fails_at: str = ""
    pid: int = 1

    def __call__(self, job: object, oversight: object) -> Script:
        self.asked.append("start")
        return self

    def ask(self, name: str, *arguments: object, patience_s: float = 0.0) -> object:
        if name == "open":
            return Opened(prepare_s=0.0, artifact_bytes=None, parity=None, failure="")
        self.asked.append(str(arguments[0]))
        if arguments[0] == self.fails_at:
            raise WorkerError("the process died in scenario: SIGSEGV")
        return Outcome(metrics={"latency_p50_s": 0.01}, verdict="VALID")

    def kill(self) -> None:
        self.asked.append("kill")

    def close(self) -> None:
        self.asked.append("close")


PLANNED = plan_scenarios([make_record(make_case())], ["idle_gap", "burst"], SHORT)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run", resume=False) as opened:
        yield opened


def run_pass(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, planned: list[PlannedScenario], fails_at: str = ""
) -> list[str]:
    """Run *planned* and return what was asked of the workers."""
    script = Script([], fails_at)
    monkeypatch.setattr("bench.scenario_pass.Worker", script)
    ScenarioPass(folder, lambda case: None, "f", Oversight()).run(planned)  # type: ignore[arg-type,return-value]  # nobody reads a job
    return script.asked


def scenarios(folder: RunFolder) -> list[ScenarioRecord]:
    return list(read_lines(folder.path / "scenarios.jsonl", ScenarioRecord))


def test_a_scenario_that_dies_fails_alone(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run_pass(folder, monkeypatch, PLANNED, fails_at="idle_gap")

    assert asked == ["start", "idle_gap", "kill", "start", "burst", "close"]
    assert [(each.scenario, each.status) for each in scenarios(folder)] == [("idle_gap", "failed"), ("burst", "ok")]
    assert "SIGSEGV" in scenarios(folder)[0].reason


def test_what_is_finished_is_not_driven_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run_pass(folder, monkeypatch, PLANNED)

    assert run_pass(folder, monkeypatch, PLANNED) == []
    assert len(scenarios(folder)) == 2


def test_what_failed_is_tried_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run_pass(folder, monkeypatch, PLANNED, fails_at="burst")

    assert run_pass(folder, monkeypatch, PLANNED) == ["start", "burst", "close"]


def test_another_bound_is_another_measurement(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record(make_case(), timing=steady(0.001))
    for p99_s in (0.1, 0.2):
        planned = plan_scenarios([record], ["server"], SHORT, p99_s)
        assert run_pass(folder, monkeypatch, planned) == ["start", "server", "close"]


def test_a_skipped_scenario_starts_no_process_and_is_recorded_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [replace(plan, skip_reason="nothing to drive it with") for plan in PLANNED[:1]]

    assert run_pass(folder, monkeypatch, planned) + run_pass(folder, monkeypatch, planned) == []
    assert [(each.status, each.reason) for each in scenarios(folder)] == [("skipped", "nothing to drive it with")]


def test_what_was_driven_is_kept_where_loadgen_is_gone(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run_pass(folder, monkeypatch, PLANNED)

    assert run_pass(folder, monkeypatch, [replace(plan, skip_reason="no LoadGen here") for plan in PLANNED]) == []
    assert [each.status for each in scenarios(folder)] == ["ok", "ok"]
