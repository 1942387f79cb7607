from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bench.interleave import Member
from bench.process import WorkerError
from bench.records import Scalar
from bench.scored import scored_facts
from bench.vouch import Vouchers
from tests.bench.conftest import make_case

CASE = make_case()


@dataclass
class Process:
    """Stands for a worker that gives this evidence, or has ended."""

    evidence: dict[str, Scalar] = field(default_factory=lambda: {"precision": "fp32"})
    is_gone: bool = False

    def ask(self, call: str) -> object:
        assert call == "evidence"
        if self.is_gone:
            raise WorkerError("the process died in evidence: SIGSEGV")
        return self.evidence, "digest"


def member(process: int, **known: object) -> Member:
    return Member(case=CASE, worker=Process(**known), process=process)  # type: ignore[arg-type]  # what is asked of it


def test_a_row_is_what_its_worst_process_was() -> None:
    vouchers, last = Vouchers(), {"precision": "fp32"}

    for number, said in enumerate(("", "compiled anew 1 times", "ran with 1 threads, not 2")):
        evidence = {"precision": "fp32", **({"fallback": said} if said else {})}
        assert vouchers.ask(member(number, evidence=evidence)) == ""
    vouchers.complete(CASE.key, last, {})

    assert last["fallback"] == "in process 1: compiled anew 1 times"


def test_another_case_is_not_touched() -> None:
    vouchers, other = Vouchers(), {"precision": "fp32"}
    vouchers.ask(member(0, evidence={"fallback": "ran in fp32"}))

    vouchers.complete("another/case", other, {})

    assert "fallback" not in other


def test_a_process_that_cannot_tell_fails_its_case() -> None:
    assert Vouchers().ask(member(0, is_gone=True)) == "the process died in evidence: SIGSEGV"


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        ({"precision": "bf16"}, None),
        ({"precision": "fp32"}, "scored with precision fp32, timed with bf16"),
        ({"precision": "bf16", "float_convolutions": 3}, "scored with float_convolutions 3, timed with None"),
        ({"fallback": "emulated"}, "of the session that was scored: emulated"),
        ({"precision": "bf16", "fallback": "emulated"}, "of the session that was scored: emulated"),
        ({}, None),
    ],
)
def test_the_session_that_was_scored_ran_what_is_timed(scored: dict[str, Scalar], said: str | None) -> None:
    evidence: dict[str, Scalar] = {"precision": "bf16"}

    Vouchers().complete(CASE.key, evidence, scored)

    assert evidence.get("fallback") == said
    assert scored_facts(evidence) == scored  # as a run that is resumed reads them


def test_a_fallback_of_its_own_stands() -> None:
    evidence: dict[str, Scalar] = {"precision": "bf16", "fallback": "its own"}

    Vouchers().complete(CASE.key, evidence, {"precision": "fp32"})

    assert evidence["fallback"] == "its own"
