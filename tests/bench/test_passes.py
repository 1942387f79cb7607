from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from bench.interleave import Limits, Member
from bench.passes import measure_passes
from bench.process import WorkerError
from bench.records import Block
from bench.statistic import judge, latency_p50
from tests.bench.conftest import make_case

LIMITS = Limits(blocks=8, most_blocks=12, case_s=10.0, target_ci=1e-9)


@dataclass
class Process:
    """Stands for a worker whose every call takes *sample_s*; 0 for one that dies at its first block."""

    sample_s: float
    pid: int = 1

    def ask(self, call: str, patience_s: float = 0.0) -> object:
        if call == "warm_up":
            return 2, True
        if not self.sample_s:
            raise WorkerError("the process died in block: SIGSEGV")
        return (self.sample_s,) * 3


class Quiet:
    """A load meter of a machine of our own."""

    def __init__(self, pids: list[int], threads: int) -> None:
        pass

    def read(self) -> float:
        return 0.0


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.LoadMeter", Quiet)


def in_processes(backend: str, *samples_s: float) -> list[Member]:
    """Return a member for each process of one case, of which a call takes so long."""
    case = make_case(backend=backend)
    return [Member(case=case, worker=Process(sample_s)) for sample_s in samples_s]  # type: ignore[arg-type]


def measure(
    *cases: list[Member], anchor: Member | None = None, limits: Limits = LIMITS, processes: int = 0
) -> tuple[list[Member], list[Member], list[Block]]:
    """Return what became of *cases*, whom the caller was told of, and every block as it was told."""
    waiting = {members[0].case.key: members[1:] for members in cases}
    done: list[Member] = []
    blocks: list[Block] = []
    measured = measure_passes(
        [members[0] for members in cases],
        [anchor] if anchor else [],
        limits,
        processes or len(cases[0]),
        reopen=lambda member, process: waiting[member.case.key].pop(0),
        on_block=lambda member, block: blocks.append(block) if member is not anchor else None,
        on_done=done.append,
    )
    return measured, done, blocks


def test_blocks_of_all_processes_are_one_timing_and_every_round_is_another() -> None:
    (member,), done, told = measure(in_processes("a", 0.1, 0.11, 0.12))

    assert done == [member]
    assert [block.process for block in member.blocks] == [0] * 4 + [1] * 4 + [2] * 4
    assert [block.round for block in member.blocks] == list(range(1, 13))
    assert member.blocks == told
    assert member.warmup_blocks == 6
    assert latency_p50(member.timing(LIMITS)).point == pytest.approx(0.11)
    # Within each process nothing varies: one of them alone would be called exact.
    assert latency_p50(member.timing(LIMITS)).high > 1.2 * 0.11


def test_cases_of_a_round_share_its_number_in_every_process() -> None:
    measured, _, _ = measure(in_processes("a", 0.1, 0.1), in_processes("b", 1.0, 1.0))

    # The slow one ends by its time, after two blocks; the second processes begin after the other's sixth.
    rounds = [{block.round for block in member.blocks if block.process == 1} for member in measured]
    assert rounds[1] <= rounds[0]
    assert min(rounds[0]) == min(rounds[1])


def test_the_anchor_keeps_its_process() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Process(0.01))  # type: ignore[arg-type]

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1), anchor=anchor)

    assert [block.round for block in anchor.blocks] == [block.round for block in member.blocks]


@dataclass
class Slowing:
    """Stands for a worker whose calls take *samples_s* in turn, three to a block, the last of them from then on."""

    samples_s: list[float]
    pid: int = 1

    def ask(self, call: str, patience_s: float = 0.0) -> object:
        if call == "warm_up":
            return 2, True
        return ((self.samples_s.pop(0) if len(self.samples_s) > 1 else self.samples_s[0]),) * 3


def test_rounds_of_the_first_process_are_judged_by_what_the_anchor_told_later() -> None:
    # In the first process's four rounds, too few to know its level by, two were slow.
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02, 0.02, *[0.01] * 20]))  # type: ignore[arg-type]

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1, 0.1), anchor=anchor)

    assert [block.round for block in member.blocks if not block.accepted] == [1, 2]
    assert {block.rejected_for for block in member.blocks if not block.accepted} == {"anchor"}


def test_what_was_rejected_afterwards_is_made_up_for_in_the_last_process() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02, 0.02, *[0.01] * 20]))  # type: ignore[arg-type]
    limits = replace(LIMITS, most_blocks=8)

    (member,), done, _ = measure(in_processes("a", 0.1, 0.1), anchor=anchor, limits=limits)

    assert [block.process for block in member.blocks] == [0] * 4 + [1] * 6
    assert [block.round for block in member.blocks] == list(range(1, 11))
    assert sum(block.accepted for block in member.blocks) == 8
    assert judge(member.timing(limits), {}, "fp32") == "valid"
    assert done == [member]


def test_samples_of_the_tail_that_were_rejected_afterwards_are_made_up_for() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02, 0.02, *[0.01] * 20]))  # type: ignore[arg-type]
    limits = replace(LIMITS, samples=30)  # of ten blocks

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1), anchor=anchor, limits=replace(limits, most_blocks=10))

    assert sum(block.accepted for block in member.blocks) == 10
    assert len(member.blocks) == 12


def test_many_blocks_of_few_samples_are_made_up_for_too() -> None:
    # Twenty blocks of three samples, where four are the most but for the samples.
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02, 0.02, *[0.01] * 40]))  # type: ignore[arg-type]
    limits = Limits(blocks=2, most_blocks=4, case_s=60.0, target_ci=1e-9, samples=60)

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1), anchor=anchor, limits=limits)

    assert sum(len(block.samples_s) for block in member.blocks if block.accepted) == 60


def test_making_up_is_no_reason_to_have_ended() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02, 0.02, *[0.01] * 40]))  # type: ignore[arg-type]
    limits = Limits(blocks=12, most_blocks=64, case_s=30.0, target_ci=0.01)

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1), anchor=anchor, limits=limits)

    assert [block.accepted for block in member.blocks].count(False) == 2
    assert member.stop_reason == "target_ci"


def test_a_process_that_lost_everything_is_replaced() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Slowing([0.02] * 4 + [0.01] * 20))  # type: ignore[arg-type]

    (member,), _, _ = measure(in_processes("a", 0.1, 0.1, 0.1, 0.1), anchor=anchor, processes=3)

    assert [block.process for block in member.blocks if block.accepted] == [1] * 4 + [2] * 4 + [0] * 3
    assert judge(member.timing(LIMITS), {}, "fp32") == "valid"


def test_other_work_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quiet, "read", lambda self: 0.5)

    (member,), done, _ = measure(in_processes("a", 0.1, 0.1, 0.1))

    assert len(member.blocks) == 2 * LIMITS.most_blocks
    assert judge(member.timing(LIMITS), {}, "fp32") == "contended"
    assert done == [member]


def test_a_round_has_one_number_where_the_case_that_had_most_has_died() -> None:
    anchor = Member(case=make_case(variant="anchor"), worker=Process(0.01))  # type: ignore[arg-type]
    slow = in_processes("slow", 1.0, 1.0)  # two blocks in its time
    quick = in_processes("quick", 0.1, 0.1)
    quick[1].failure = "it does not open again"

    measure(slow, quick, anchor=anchor)

    rounds = [block.round for block in anchor.blocks]
    assert len(rounds) == len(set(rounds))


@pytest.mark.parametrize("samples_s", [(0.0, 0.1, 0.1), (0.1, 0.0, 0.1), (0.1, 0.1, 0.0)])
def test_a_process_that_dies_fails_its_case_once_and_no_other(samples_s: tuple[float, ...]) -> None:
    measured, done, _ = measure(in_processes("a", *samples_s), in_processes("b", 0.1, 0.1, 0.1))

    assert [("SIGSEGV" in member.failure) for member in measured] == [True, False]
    assert sorted(member.case.backend for member in done) == ["a", "b"]
    assert len(measured[1].blocks) == 12


def test_a_session_that_does_not_open_again_fails_its_case() -> None:
    members = in_processes("a", 0.1, 0.1)
    members[1].failure = "outputs differ from those of the scored session"

    (member,), done, _ = measure(members)

    assert member.failure == "outputs differ from those of the scored session"
    assert done == [member]


def test_the_severest_reason_to_end_is_told_and_a_process_without_blocks_makes_no_valid_row() -> None:
    limits = Limits(blocks=8, most_blocks=64, case_s=10.0, target_ci=0.01)

    (quick,), _, _ = measure(in_processes("a", 0.01, 0.01), limits=limits)
    (mixed,), _, _ = measure(in_processes("a", 0.01, 1.0), limits=limits)

    assert quick.stop_reason == "target_ci"
    assert judge(quick.timing(limits), {}, "fp32") == "valid"
    assert mixed.stop_reason == "time_budget"
    assert judge(mixed.timing(limits), {}, "fp32") == "unstable"
