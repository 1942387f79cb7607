from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from bench.device_state import Reading
from bench.interleave import Limits, Member, block_limit, measure_group, why_stop
from bench.measure import TICK_S
from bench.process import WorkerError
from bench.quiet import slow_rounds
from bench.records import ANCHOR, FOREIGN_LIMIT, FOREIGN_LOAD, Block, Timing
from bench.statistic import FEWEST_SAMPLES, judge, latency_p50
from lensing_models.preset import PRESETS
from tests.bench.conftest import make_case

LIMITS = Limits(blocks=8, most_blocks=16, case_s=10.0, target_ci=0.01)


def timing(samples_s: list[float], accepted: bool = True) -> Timing:
    blocks = tuple(
        Block(samples_s=(sample,), foreign_load=0.0 if accepted else 0.5, accepted=accepted, round=turn)
        for turn, sample in enumerate(samples_s)
    )
    return Timing(warmup_blocks=1, settled=True, stop_reason="", required_blocks=8, blocks=blocks)


def test_a_narrow_interval_ends_a_case() -> None:
    assert why_stop(timing([0.1] * 8), LIMITS) == "target_ci"


def test_a_narrow_interval_of_too_few_blocks_does_not() -> None:
    assert why_stop(timing([0.1] * 7), LIMITS) == ""


def test_a_wide_interval_goes_on() -> None:
    assert why_stop(timing([0.1, 0.2] * 4), LIMITS) == ""


def test_the_time_budget_ends_a_case() -> None:
    assert why_stop(timing([4.0, 5.0, 4.0]), LIMITS) == "time_budget"


def test_rejected_blocks_may_take_the_budget_once_more() -> None:
    assert why_stop(timing([4.0] * 3, accepted=False), LIMITS) == ""
    assert why_stop(timing([4.0] * 5, accepted=False), LIMITS) == "time_budget"


def test_the_greatest_number_of_blocks_ends_a_case() -> None:
    assert why_stop(timing([0.1, 0.2] * 8), LIMITS) == "most_blocks"


def of_calls(calls: int, blocks: int, sample_s: float = 0.1) -> Timing:
    """Return a timing of *blocks* accepted blocks of *calls* equal samples each."""
    made = tuple(
        Block(samples_s=(sample_s,) * calls, foreign_load=0.0, accepted=True, round=turn) for turn in range(blocks)
    )
    return Timing(warmup_blocks=1, settled=True, stop_reason="", required_blocks=8, blocks=made)


TAIL = Limits(blocks=8, most_blocks=16, case_s=120.0, target_ci=0.01, samples=662)


def test_a_narrow_interval_does_not_end_a_case_that_lacks_samples_for_its_tail() -> None:
    assert why_stop(of_calls(30, 16, 0.01), TAIL) == ""
    assert why_stop(of_calls(30, 24, 0.01), TAIL) != ""


def test_as_many_more_blocks_are_measured_as_the_tail_needs() -> None:
    # 6 calls a block: 662 samples are 111 blocks, in 67 s of timed calls.
    assert why_stop(of_calls(6, 110), TAIL) == ""
    assert why_stop(of_calls(6, 111), TAIL) == "most_blocks"


def test_a_case_too_slow_for_its_tail_ends_with_its_time() -> None:
    assert why_stop(of_calls(1, 239, 0.5), TAIL) == ""
    assert why_stop(of_calls(1, 240, 0.5), TAIL) == "time_budget"


@pytest.mark.parametrize("latency_s", [0.001, 0.01, 0.03, 0.1, 0.18])
def test_preset_reference_collects_a_p99_from_cases_fast_enough_for_its_time(latency_s: float) -> None:
    preset = PRESETS["reference"]
    limits = Limits(
        blocks=preset.blocks,
        most_blocks=preset.most_blocks,
        case_s=preset.case_s,
        target_ci=0.01,
        samples=preset.samples,
    )
    calls = max(preset.block_calls, math.ceil(preset.block_s / latency_s))

    blocks = next(count for count in itertools.count(1) if why_stop(of_calls(calls, count, latency_s), limits))

    assert blocks * calls >= FEWEST_SAMPLES[99]


@dataclass
class Script:
    """Stands for a worker: answers blocks of a fixed time and notes who is asked when."""

    name: str
    log: list[str]
    dies_at: int = 10**9
    pid: int = field(default=1)
    asked: int = 0
    readings: list[Reading] = field(default_factory=list)

    def ask(self, call: str, patience_s: float = 0.0) -> object:
        if call == "warm_up":
            return 2, True
        if call == "device_state":
            self.log.append("state")
            return self.readings.pop(0)
        self.asked += 1
        if self.asked >= self.dies_at:
            raise WorkerError("the process died in block: SIGSEGV")
        self.log.append(self.name)
        return (0.1, 0.1)


class Quiet:
    """A load meter of a machine of our own, or of one where *load* is foreign."""

    load = 0.0

    def __init__(self, pids: list[int], threads: int) -> None:
        pass

    def start(self) -> None:
        pass

    def read(self) -> float:
        return self.load


class Busy(Quiet):
    load = 0.5


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.LoadMeter", Quiet)


def members(log: list[str], *names: str, dies_at: int = 10**9) -> list[Member]:
    last = names[-1]
    return [
        Member(
            case=make_case(backend=name),
            worker=Script(name, log, dies_at if name == last else 10**9),  # type: ignore[arg-type]  # its two methods
        )
        for name in names
    ]


def test_cases_take_turns_round_by_round() -> None:
    log: list[str] = []

    measure_group(members(log, "a", "b", "c"), [], LIMITS, lambda member, block: None, lambda member: None)

    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1  # not always in the same order


def test_the_anchor_is_in_every_round_and_has_no_limit() -> None:
    log: list[str] = []
    case, anchor = members(log, "case", "anchor")

    measure_group([case], [anchor], LIMITS, lambda member, block: None, lambda member: None)

    assert log.count("anchor") == log.count("case") == len(anchor.blocks)
    assert anchor.stop_reason == ""


def test_a_worker_that_dies_leaves_the_others_measuring() -> None:
    log: list[str] = []
    healthy, dying = members(log, "healthy", "dying", dies_at=3)

    measure_group([healthy, dying], [], LIMITS, lambda member, block: None, lambda member: None)

    assert "SIGSEGV" in dying.failure
    assert len(dying.blocks) == 2
    assert healthy.stop_reason
    assert not healthy.failure


def test_each_case_is_done_once_failed_ones_too() -> None:
    done: list[str] = []

    measure_group(
        members([], "healthy", "dying", dies_at=3),
        [],
        LIMITS,
        lambda member, block: None,
        lambda member: done.append(member.case.backend),
    )

    assert done == ["dying", "healthy"]


def test_every_block_is_told_of_as_it_is_measured() -> None:
    told: list[tuple[str, Block]] = []
    group = members([], "a", "b")

    measure_group(
        group, [], LIMITS, lambda member, block: told.append((member.case.backend, block)), lambda member: None
    )

    assert [block for name, block in told if name == "a"] == group[0].blocks


def test_under_foreign_load_no_block_counts_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.LoadMeter", Busy)
    (member,) = members([], "a")

    measure_group([member], [], LIMITS, lambda member, block: None, lambda member: None)

    assert not any(block.accepted for block in member.blocks)
    assert len(member.blocks) == 2 * LIMITS.most_blocks
    assert {block.foreign_load for block in member.blocks} == {0.5}


def test_the_state_of_a_gpu_is_read_around_each_block_and_outside_it() -> None:
    log: list[str] = []
    (member,) = members(log, "a")
    member.case = make_case(device="cuda")
    ends = [Reading(total_energy_mj=1000, slowdowns=()), Reading(total_energy_mj=4000, slowdowns=("power cap",))]
    member.worker.readings = ends * LIMITS.most_blocks  # type: ignore[attr-defined]  # a Script

    measure_group([member], [], LIMITS, lambda member, block: None, lambda member: None)

    assert log[:6] == ["state", "a", "state"] * 2
    states = [block.device for block in member.blocks]
    assert all(state and (state.energy_j, state.slowdowns) == (3.0, ("power cap",)) for state in states)


def test_a_block_on_a_cpu_asks_for_no_gpu() -> None:
    log: list[str] = []
    (member,) = members(log, "a")

    measure_group([member], [], LIMITS, lambda member, block: None, lambda member: None)

    assert "state" not in log
    assert all(block.device is None for block in member.blocks)


@pytest.mark.parametrize("look", [8, 12, 16, 24])
def test_looks_are_at_least_four_blocks_apart(look: int) -> None:
    wide = Limits(blocks=8, most_blocks=100, case_s=1e9, target_ci=0.01)

    assert why_stop(timing([0.1] * look), wide) == "target_ci"
    assert why_stop(timing([0.1] * (look + 1)), wide) == ""


@dataclass
class Weather:
    """Stands for a worker on a machine that is slow in some rounds: its block takes *base_s* times the weather."""

    base_s: float
    slowness: Callable[[int], float]
    pid: int = field(default=1)
    asked: int = 0

    def ask(self, call: str, patience_s: float = 0.0) -> object:
        if call == "warm_up":
            return 2, True
        self.asked += 1
        return (self.base_s * self.slowness(self.asked),) * 3


def measure_in(slowness: Callable[[int], float], limits: Limits = LIMITS, groups: int = 1) -> list[Member]:
    """Return the one case of each of *groups* that share an anchor, measured in the weather *slowness* by round."""
    anchor = Member(case=make_case(variant="anchor"), worker=Weather(0.01, slowness))  # type: ignore[arg-type]
    measured = []
    for _ in range(groups):
        worker = Weather(0.1, slowness, asked=anchor.worker.asked)  # type: ignore[attr-defined]
        measured.append(Member(case=make_case(), worker=worker))  # type: ignore[arg-type]  # its two methods
        measure_group(measured[-1:], [anchor], limits, lambda member, block: None, lambda member: None)
    return measured


def test_an_anchor_that_never_stood_keeps_its_reason_and_takes_no_turn() -> None:
    log: list[str] = []
    case, anchor = members(log, "case", "anchor")
    anchor.failure = "its session could not be built"

    measure_group([case], [anchor], LIMITS, lambda member, block: None, lambda member: None)

    assert anchor.failure == "its session could not be built"
    assert "anchor" not in log


def test_a_round_in_which_the_anchor_was_slow_does_not_count() -> None:
    (member,) = measure_in(lambda turn: 1.4 if turn in (3, 4, 9) else 1.0)

    assert {block.round for block in member.blocks if block.rejected_for == ANCHOR} == {3, 4, 9}
    assert all(block.accepted == (block.rejected_for == "") for block in member.blocks)
    assert judge(member.timing(LIMITS), {}, "fp32") == "valid"
    assert latency_p50(member.timing(LIMITS)).point == pytest.approx(0.1)


def test_contention_that_no_counter_shows_makes_a_row_contended_and_never_valid() -> None:
    quiet, contended = measure_in(lambda turn: 1.0 if turn <= 8 else 1.4, groups=2)

    assert judge(quiet.timing(LIMITS), {}, "fp32") == "valid"
    assert judge(contended.timing(LIMITS), {}, "fp32") == "contended"
    assert len(contended.blocks) == 2 * LIMITS.most_blocks


def test_an_early_block_is_judged_by_what_is_known_later() -> None:
    (member,) = measure_in(lambda turn: 1.4 if turn <= 3 else 1.0)

    assert [block.round for block in member.blocks if not block.accepted] == [1, 2, 3]


def test_fewer_than_eight_anchor_blocks_reject_nothing() -> None:
    few = Limits(blocks=4, most_blocks=7, case_s=1e9, target_ci=1e-9)

    (member,) = measure_in(lambda turn: 1.4 if turn > 4 else 1.0, few)

    assert all(block.accepted for block in member.blocks)


def test_a_machine_that_stays_slow_is_accepted_in_the_end() -> None:
    patient = Limits(blocks=8, most_blocks=100, case_s=1e9, target_ci=0.01)

    *_, last = measure_in(lambda turn: 1.0 if turn <= 8 else 1.3, patient, groups=2)

    assert judge(last.timing(patient), {}, "fp32") == "valid"
    assert all(block.accepted for block in last.blocks)


def test_each_anchor_judges_by_itself() -> None:
    steady, moved = (
        Member(case=make_case(variant="anchor"), worker=worker)
        for worker in (  # type: ignore[arg-type]
            Weather(0.01, lambda turn: 1.0),
            Weather(0.02, lambda turn: 1.4 if turn in (3, 9) else 1.0),
        )
    )
    case = Member(case=make_case(), worker=Weather(0.1, lambda turn: 1.0))  # type: ignore[arg-type]  # its two methods

    measure_group([case], [steady, moved], LIMITS, lambda member, block: None, lambda member: None)

    assert {block.round for block in case.blocks if block.rejected_for == ANCHOR} == {3, 9}


def test_a_short_block_may_show_two_ticks_by_chance_and_a_long_one_no_share_of_it() -> None:
    assert block_limit(0.2, 2) == pytest.approx(FOREIGN_LIMIT + 2 * TICK_S / 0.4)
    assert block_limit(100.0, 2) == pytest.approx(FOREIGN_LIMIT, abs=2e-4)
    assert block_limit(0.001, 1) == 2 * FOREIGN_LIMIT


def test_foreign_load_is_a_cause_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.interleave.LoadMeter", Busy)

    (member,) = measure_in(lambda turn: 1.4 if turn % 2 else 1.0)

    assert {block.rejected_for for block in member.blocks} == {FOREIGN_LOAD}


@pytest.mark.parametrize(("noise", "most"), [(0.02, 0.001), (0.03, 0.005), (0.05, 0.1)])
def test_a_quiet_machine_loses_few_blocks_to_the_noise_of_its_anchor(noise: float, most: float) -> None:
    draw = np.random.default_rng(0)
    anchor = [
        Block(samples_s=(float(np.exp(noise * draw.standard_normal())),), foreign_load=0.0, accepted=True, round=turn)
        for turn in range(2000)
    ]

    assert len(slow_rounds(anchor, 0)) / len(anchor) <= most


def test_the_wall_time_of_rejected_blocks_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("bench.interleave.stopwatch", lambda: lambda: float(next(clock)))

    (member,) = measure_in(lambda turn: 1.4 if turn == 3 else 1.0)

    assert member.rejected_s == member.walls_s[2] > 0
