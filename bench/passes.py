"""Measure a group in several processes a case, one set after the other: a process may be fast or slow for good."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.interleave import Limits, Member, measure_group, most_blocks_of, slow_rounds_of
from bench.quiet import review
from bench.records import Block
from bench.statistic import accepted_blocks, lost_processes, timed_s

#: The reason for which a case ended that is told where its processes ended for several.
SEVEREST = ("time_budget", "most_blocks", "target_ci")


def measure_passes(
    members: Sequence[Member],
    anchors: Sequence[Member],
    limits: Limits,
    processes: int,
    *,
    reopen: Callable[[Member, int], Member],
    on_block: Callable[[Member, Block], None],
    on_done: Callable[[Member], None],
    seed: int = 0,
) -> list[Member]:
    """Measure *members* as `measure_group` does, in *processes* processes each, and return them.

    The limits are divided among the processes, and so is the time between them: while one set of
    processes is measured, the next is not there yet. What other work has spoilt is made up for at the end, in the
    last process, or in another one in place of one that has lost everything, while a case that its time has not
    ended has taken less than twice the blocks and the time that it may. A member whose process fails at any time
    has failed.

    Args:
        members: Cases of one task and batch size, their sessions open.
        anchors: The shared cases; their processes stay.
        limits: When a case has enough, all its processes together.
        processes: How many each case gets; 1 or more.
        reopen: Returns the member of a case with a new process, the second being number 1, its session open, or with
            its `failure`.
        on_block: As of `measure_group`.
        on_done: Told of each member once: of one that failed at once, of the others in the end, in their last process.
        seed: Of the random order within rounds; each process has another one, which *seed* + its number gives.
    """
    since = [len(anchor.blocks) for anchor in anchors]
    known = {member.case.key: member for member in members}

    def finish(member: Member) -> None:
        begun = known[member.case.key]
        if member is not begun:
            join(begun, member)
        known[member.case.key] = member
        if member.failure:
            on_done(member)

    def measure(some: Sequence[Member], limits: Limits, turn: int) -> None:
        # Behind whatever anybody has measured: a round of the group has one number.
        taken = [block.round for member in known.values() for block in member.blocks]
        taken += [block.round for anchor, first in zip(anchors, since, strict=True) for block in anchor.blocks[first:]]
        for member in some:
            member.first_round = 1 + max(taken, default=0)
            if member.failure:
                finish(member)
        able = [member for member in some if not member.failure]
        measure_group(able, anchors, limits, on_block, finish, seed=seed + turn)
        # By all that the anchors have told of their quiet level: early rounds were judged by little.
        slow = slow_rounds_of(anchors, since)
        for member in known.values():
            member.blocks = review(member.blocks, slow)

    def open_again(member: Member, process: int) -> Member:
        opened = reopen(member, process)
        opened.process = process
        return opened

    share = share_limits(limits, processes)
    measure(members, share, 0)
    for number in range(1, processes):
        measure([open_again(member, number) for member in known.values() if not member.failure], share, number)
    for turn in range(processes, 2 * processes):
        short = [member for member in known.values() if not member.failure and is_short(member, limits)]
        if not short:
            break
        wanted = [missing_blocks(one, limits, share) for one in short]
        left = [2 * most_blocks_of(one.blocks, limits) - len(one.blocks) for one in short]
        few = min(max(wanted), share.most_blocks, max(left))
        again = [
            open_again(member, lost[0]) if (lost := lost_processes(member.blocks)) else continued(member)
            for member in short
        ]
        reasons = {member.case.key: member.stop_reason for member in short}
        measure(again, replace(share, blocks=few, most_blocks=few, samples=0), turn)
        for key, reason in reasons.items():
            # The blocks of this pass were given to it; only its time can have ended the case otherwise.
            if known[key].stop_reason != "time_budget":
                known[key].stop_reason = reason
    for member in known.values():
        if not member.failure:
            on_done(member)
    return list(known.values())


def is_short(member: Member, limits: Limits) -> bool:
    """Return whether other work has spoilt so much of *member* that it wants more, and it may take more.

    Rounds of a process that has ended may be rejected once the anchors have told more.
    """
    counted = accepted_blocks(member.blocks)
    if len(counted) == len(member.blocks) or timed_s(counted) >= limits.case_s:
        return False
    most_blocks = 2 * most_blocks_of(member.blocks, limits)
    spent = len(member.blocks) >= most_blocks or timed_s(member.blocks) >= 2 * limits.case_s
    return not spent and bool(missing_blocks(member, limits, limits))


def missing_blocks(member: Member, limits: Limits, share: Limits) -> int:
    """Return how many blocks *member* needs to have what *limits* ask of blocks, samples and processes.

    A process that has lost everything is made up for by as many as *share* gives one.
    """
    counted = accepted_blocks(member.blocks)
    samples = [len(block.samples_s) for block in member.blocks]
    lacking = limits.samples - sum(len(block.samples_s) for block in counted)
    return max(
        limits.blocks - len(counted),
        math.ceil(lacking / max(statistics.fmean(samples), 1)),
        share.blocks if lost_processes(member.blocks) else 0,
        0,
    )


def continued(member: Member) -> Member:
    """Return *member* with nothing measured yet, in the process that it has."""
    return Member(case=member.case, worker=member.worker, process=member.process, experiment=member.experiment)


def share_limits(limits: Limits, processes: int) -> Limits:
    """Return what of *limits* each of a case's processes may take."""
    return replace(
        limits,
        blocks=math.ceil(limits.blocks / processes),
        most_blocks=math.ceil(limits.most_blocks / processes),
        case_s=limits.case_s / processes,
        samples=math.ceil(limits.samples / processes),
    )


def join(begun: Member, member: Member) -> None:
    """Put before what *member* has measured what *begun*, the same case in earlier processes, had."""
    member.blocks = [*begun.blocks, *member.blocks]
    member.walls_s = [*begun.walls_s, *member.walls_s]
    member.warmup_blocks += begun.warmup_blocks
    member.settled = member.settled and begun.settled
    reasons = {begun.stop_reason, member.stop_reason}
    member.stop_reason = next((reason for reason in SEVEREST if reason in reasons), "")
