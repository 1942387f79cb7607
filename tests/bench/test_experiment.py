from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bench.experiment import STAGES, Extras, Findings, differing, saturate_together, time_end_to_end, time_gpu
from bench.interleave import Limits, Member
from bench.process import WorkerError
from bench.statistic import throughput_interval
from tests.bench.conftest import make_case

LIMITS = Limits(blocks=4, most_blocks=4, case_s=10.0, target_ci=0.01)
EXTRAS = Extras(saturated=LIMITS, end_to_end_calls=3, end_to_end_s=1.0, has_largest_batch=False)


@dataclass
class Script:
    """Stands for a worker: answers as it is told, and fails in the call that is named."""

    fails_in: str = ""
    evidence: dict[str, object] = field(default_factory=lambda: {"precision": "fp32", "threads": 2})
    disagreement: str = ""
    pid: int = 1

    def ask(self, call: str, *arguments: object, patience_s: float = 0.0) -> object:
        if call == self.fails_in:
            raise WorkerError(f"the process died in {call}: SIGKILL (out of memory?)")
        return {
            "saturate": self.disagreement,
            "warm_up": (2, True),
            "block": (0.1, 0.1, 0.1, 0.1),
            "proof": self.evidence,
            "gpu_times": (0.002, 0.001, 0.003),
            "end_to_end": tuple((float(stage), float(stage)) for stage in range(len(STAGES))),
        }[call]


class Meter:
    """A load meter of a machine on which *load* is foreign."""

    load = 0.0

    def __init__(self, pids: list[int], threads: int) -> None:
        pass

    def read(self) -> float:
        return self.load


class BusyMeter(Meter):
    load = 0.5


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.LoadMeter", Meter)
    monkeypatch.setattr("bench.experiment.LoadMeter", Meter)


def member(script: Script, backend: str = "eager") -> Member:
    return Member(case=make_case(backend=backend), worker=script)  # type: ignore[arg-type]  # what is asked of it


def found() -> Findings:
    return Findings(evidence={"precision": "fp32", "threads": 2}, input_digest="", remarks=[])


@pytest.mark.parametrize(
    ("of_latency", "proof", "said"),
    [
        ({"scored_precision": "fp32", "fallback": "scored"}, {"precision": "bf16"}, "scored with precision fp32"),
        ({"scored_precision": "bf16"}, {"precision": "bf16"}, None),
        ({"fallback": "2 threads"}, {"precision": "bf16"}, ""),
        ({"scored_precision": "bf16", "scored_fallback": "emulated"}, {"precision": "bf16"}, "of the session that was"),
    ],
)
def test_two_requests_are_held_to_what_was_scored_too(
    of_latency: dict[str, str], proof: dict[str, str], said: str | None
) -> None:
    found = differing(proof, {"precision": "bf16", **of_latency}).get("saturated_fallback")

    assert found == said if not said else str(found).startswith(said)


def saturate(*scripts: Script) -> list[Findings]:
    members = [member(script, f"backend{number}") for number, script in enumerate(scripts)]
    findings = {item.case.key: found() for item in members}
    saturate_together(members, findings, LIMITS, on_block=lambda member, block: None)
    return list(findings.values())


@pytest.mark.parametrize(("device", "samples"), [("cuda", (0.002, 0.001, 0.003)), ("cpu", ())])
def test_the_time_of_the_gpu_is_asked_where_there_is_one(device: str, samples: tuple[float, ...]) -> None:
    findings = found()

    time_gpu(Member(case=make_case(device=device), worker=Script()), findings, EXTRAS)  # type: ignore[arg-type]

    assert findings.gpu_samples_s == samples
    assert not findings.remarks


def test_a_gpu_whose_time_cannot_be_told_costs_no_row() -> None:
    findings = found()

    time_gpu(Member(case=make_case(device="cuda"), worker=Script(fails_in="gpu_times")), findings, EXTRAS)  # type: ignore[arg-type]

    assert findings.gpu_samples_s == ()
    assert findings.remarks[0].startswith("time of the GPU: the process died in gpu_times")


def test_blocks_of_two_requests_are_a_timing_of_their_own() -> None:
    (known,) = saturate(Script())

    assert known.throughput_timing
    assert known.throughput_timing.experiment == "throughput"
    assert len(known.throughput_timing.blocks) == 4
    assert throughput_interval(known.throughput_timing, batch_size=2).point == pytest.approx(20.0)


def test_two_requests_are_not_made_of_one_thread() -> None:
    case = make_case(threads=1)
    lonely = Member(case=case, worker=Script())  # type: ignore[arg-type]  # as above
    findings = {case.key: found()}

    saturate_together([lonely], findings, LIMITS, on_block=lambda member, block: None)

    assert findings[case.key].throughput_timing is None
    assert findings[case.key].remarks == []


@pytest.mark.parametrize("call", ["saturate", "warm_up", "block", "proof"])
def test_a_case_that_two_requests_kill_keeps_its_latency_and_says_why(call: str) -> None:
    dead, healthy = saturate(Script(fails_in=call), Script())

    assert dead.throughput_timing is None
    assert dead.remarks == [f"saturated throughput: the process died in {call}: SIGKILL (out of memory?)"]
    assert healthy.throughput_timing
    assert not healthy.remarks


def test_a_session_of_two_requests_that_answers_otherwise_is_not_timed() -> None:
    (known,) = saturate(Script(disagreement="outputs differ"))

    assert known.throughput_timing is None
    assert known.remarks == ["saturated throughput: outputs differ"]


def test_evidence_tells_what_the_session_of_two_requests_says_otherwise() -> None:
    evidence = {"precision": "fp32", "threads": 1, "serialised": True}

    assert differing(evidence, {"precision": "fp32", "threads": 2}) == {
        "saturated_threads": 1,
        "saturated_serialised": True,
    }


def test_a_fallback_of_the_session_of_one_request_is_none_of_the_other() -> None:
    assert differing({"precision": "fp32"}, {"precision": "fp32", "fallback": "ran in bf16"}) == {
        "saturated_fallback": ""
    }


def test_stages_are_kept_in_their_order() -> None:
    findings = found()

    time_end_to_end(member(Script()), findings, EXTRAS)

    stages = findings.end_to_end
    assert stages
    assert [getattr(stages, name) for name in STAGES] == [(float(stage), float(stage)) for stage in range(6)]


@pytest.mark.parametrize(("meter", "accepted"), [(Meter, True), (BusyMeter, False)])
def test_stages_under_foreign_load_are_told_from_others(
    monkeypatch: pytest.MonkeyPatch, meter: type[Meter], accepted: bool
) -> None:
    monkeypatch.setattr("bench.experiment.LoadMeter", meter)
    findings = found()

    time_end_to_end(member(Script()), findings, EXTRAS)

    assert findings.end_to_end
    assert findings.end_to_end.accepted is accepted


def test_a_case_whose_stages_fail_keeps_its_latency_and_says_why() -> None:
    findings = found()

    time_end_to_end(member(Script(fails_in="end_to_end")), findings, EXTRAS)

    assert findings.end_to_end is None
    assert findings.remarks[0].startswith("end to end: the process died")
