"""Let the cases of one group take turns in short blocks, so that drift hits all alike."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.device_state import Reading, state_between
from bench.measure import CHANCE_TICKS, TICK_S, LoadMeter, stopwatch
from bench.process import Worker, WorkerError
from bench.quiet import review, slow_rounds
from bench.records import FOREIGN_LIMIT, FOREIGN_LOAD, Block, Case, Timing
from bench.statistic import accepted_blocks, half_width, timed_s

#: Accepted blocks after which the interval is looked at; looking after every block would stop
#: too early too often.
LOOKS = frozenset({8, 12, 16, 24, 32, 48, 64})
#: Seconds without an answer after which a block's worker is taken for hung, unless the limit of a
#: stage is less: no block is as long as a build or a scoring may be.
BLOCK_PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When the measuring of a case ends.

    Attributes:
        blocks: Accepted blocks that a valid row needs.
        most_blocks: Blocks after which it ends, whatever the interval.
        case_s: Seconds of timed calls after which it ends; rejected blocks may take as many again.
        target_ci: Half-width of the relative 95 % interval of the p50 at which it ends.
        samples: Accepted samples before which neither an interval nor a number of blocks ends it:
            what a percentile of the tail needs. The time does.
    """

    blocks: int
    most_blocks: int
    case_s: float
    target_ci: float
    samples: int = 0


@dataclass(kw_only=True, slots=True)
class Member:
    """A case of the group and what has been measured of it so far.

    Attributes:
        walls_s: Wall time of each block, discarded calls included [s].
        process: Number of the process in which they are measured.
        first_round: Number of its first round.
    """

    case: Case
    worker: Worker
    warmup_blocks: int = 0
    settled: bool = False
    blocks: list[Block] = field(default_factory=list)
    walls_s: list[float] = field(default_factory=list)
    stop_reason: str = ""
    failure: str = ""
    experiment: str = "latency"
    process: int = 0
    first_round: int = 1

    @property
    def rejected_s(self) -> float:
        """Return the wall time of the blocks that do not count [s]."""
        return sum(wall_s for block, wall_s in zip(self.blocks, self.walls_s, strict=True) if not block.accepted)

    def timing(self, limits: Limits) -> Timing:
        """Return the raw samples with how they came about."""
        return Timing(
            experiment=self.experiment,
            warmup_blocks=self.warmup_blocks,
            settled=self.settled,
            stop_reason=self.stop_reason,
            required_blocks=limits.blocks,
            blocks=tuple(self.blocks),
        )


def measure_group(
    members: Sequence[Member],
    anchors: Sequence[Member],
    limits: Limits,
    on_block: Callable[[Member, Block], None],
    on_done: Callable[[Member], None],
    seed: int = 0,
) -> None:
    """Measure *members* in rounds of one block each, in random order, until each has enough.

    The anchors, cases that all groups of a run share, take part in every round: what moves one
    moves the machine, so the blocks of a round in which one was slow do not count. Results are left
    in the members; one whose worker fails gets a `failure` and leaves the group.

    Args:
        members: Cases of one task and batch size, their sessions open.
        anchors: The shared cases; *limits* are not theirs.
        limits: When a case has enough.
        on_block: Told of each block as it is measured, before the anchors have judged it.
        on_done: Told of each member when it has enough or has failed, before the others go on.
        seed: Of the random order.
    """
    order = random.Random(seed)
    for member in [*members, *(anchor for anchor in anchors if not anchor.failure)]:
        _try(member, _warm_up)
    for member in members:
        if member.failure:
            on_done(member)
    active = [member for member in members if not member.failure]
    since = [len(anchor.blocks) for anchor in anchors]
    for turn in itertools.count(max((member.first_round for member in members), default=1)):
        if not active:
            return
        crowd = [*active, *(anchor for anchor in anchors if not anchor.failure)]
        measure = functools.partial(_measure, turn=turn, on_block=on_block)
        for member in order.sample(crowd, len(crowd)):
            _try(member, measure)
        slow = slow_rounds_of(anchors, since)
        for member in active:
            member.blocks = review(member.blocks, slow)
            member.stop_reason = why_stop(member.timing(limits), limits)
            if member.stop_reason or member.failure:
                on_done(member)
        active = [member for member in active if not member.failure and not member.stop_reason]


def slow_rounds_of(anchors: Sequence[Member], since: Sequence[int]) -> frozenset[int]:
    """Return the rounds in which any of *anchors* was slow; each one's blocks count from its index in *since* on."""
    judged = [slow_rounds(anchor.blocks, first) for anchor, first in zip(anchors, since, strict=True)]
    return frozenset().union(*judged)


def why_stop(timing: Timing, limits: Limits) -> str:
    """Return why measuring ends after these blocks, or an empty string to go on."""
    accepted = accepted_blocks(timing.blocks)
    samples = sum(len(block.samples_s) for block in accepted)
    most_blocks = most_blocks_of(timing.blocks, limits)
    is_enough = len(accepted) >= limits.blocks and samples >= limits.samples
    if is_enough and len(accepted) in LOOKS and half_width(timing) <= limits.target_ci:
        return "target_ci"
    if timed_s(accepted) >= limits.case_s or timed_s(timing.blocks) >= 2 * limits.case_s:
        return "time_budget"
    if len(accepted) >= most_blocks or len(timing.blocks) >= 2 * most_blocks:
        return "most_blocks"
    return ""


def most_blocks_of(blocks: Sequence[Block], limits: Limits) -> int:
    """Return how many accepted blocks a case with these *blocks* may take.

    Blocks of slow calls hold few samples: as many more are measured, until the time is over.
    """
    samples = sum(len(block.samples_s) for block in blocks)
    return max(limits.most_blocks, math.ceil(limits.samples * len(blocks) / max(samples, 1)))


def _warm_up(member: Member) -> None:
    member.warmup_blocks, member.settled = member.worker.ask("warm_up")


def _measure(member: Member, turn: int, on_block: Callable[[Member, Block], None]) -> None:
    before = _read_device(member)
    # Only the member at work is ours: a neighbour whose pool still spins disturbs like a stranger.
    meter = LoadMeter([member.worker.pid], member.case.threads)
    elapsed = stopwatch()
    samples = member.worker.ask("block", patience_s=BLOCK_PATIENCE_S)
    wall_s, load = elapsed(), meter.read()
    # Where the system does not tell the load (NaN), the block counts.
    cause = FOREIGN_LOAD if load > block_limit(wall_s, member.case.threads) else ""
    block = Block(
        samples_s=samples,
        foreign_load=load,
        accepted=not cause,
        round=turn,
        rejected_for=cause,
        process=member.process,
        device=state_between(before, _read_device(member)),
    )
    member.blocks.append(block)
    member.walls_s.append(wall_s)
    on_block(member, block)


def block_limit(wall_s: float, threads: int) -> float:
    """Return the foreign load above which a block of that length is rejected.

    The system counts in ticks, of which a few are on the wrong side of a short block by chance; a row whose blocks
    are over `FOREIGN_LIMIT` on average is judged by that (`statistic.judge`).
    """
    chance_s = CHANCE_TICKS * TICK_S
    # Never more than twice the limit.
    return FOREIGN_LIMIT + chance_s / max(wall_s * threads, chance_s / FOREIGN_LIMIT)


def _read_device(member: Member) -> Reading | None:
    """Return what the GPU of *member* does now; None on a CPU."""
    if member.case.device != "cuda":
        return None
    reading: Reading = member.worker.ask("device_state")
    return reading


def _try(member: Member, step: Callable[[Member], None]) -> None:
    """Run *step* on *member*; a worker's failure becomes the member's."""
    try:
        step(member)
    except WorkerError as error:
        member.failure = str(error)
