"""Measure a group in several processes a case, one set after the other: a process may be fast or slow for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.interleave import Limits, Member, measure_group, slow_rounds_of
from bench.quiet import review
from bench.records import Block

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
    processes is measured, the next is not there yet. A member whose process fails at any time has failed.

    Args:
        members: Cases of one task and batch size, their sessions open.
        anchors: The shared cases; their processes stay.
        limits: When a case has enough, all its processes together.
        processes: How many each case gets; 1 or more.
        reopen: Returns the member of a case with a new process, the second being number 1, its session open, or with
            its `failure`.
        on_block: As of `measure_group`.
        on_done: As of `measure_group`; told of each member once, in its last process.
        seed: Of the random order within rounds; each process has another one, which *seed* + its number gives.
    """
    share = share_limits(limits, processes)
    since = [len(anchor.blocks) for anchor in anchors]
    earlier = {member.case.key: member for member in members}
    for number in range(processes):
        if number:
            members = [reopen(member, number) for member in earlier.values() if not member.failure]
        # Behind whatever anybody has measured: a round of the group has one number.
        taken = [block.round for member in earlier.values() for block in member.blocks]
        taken += [block.round for anchor, first in zip(anchors, since, strict=True) for block in anchor.blocks[first:]]
        for member in members:
            member.process = number
            member.first_round = 1 + max(taken, default=0)

        def finish(member: Member, is_last: bool = number == processes - 1) -> None:
            if member.process:
                join(earlier[member.case.key], member)
            earlier[member.case.key] = member
            if is_last or member.failure:
                on_done(member)

        failed = [member for member in members if member.failure]
        for member in failed:
            finish(member)
        able = [member for member in members if not member.failure]
        measure_group(able, anchors, share, on_block, finish, seed=seed + number)
    # By all that the anchors have told of their quiet level: early rounds were judged by little.
    slow = slow_rounds_of(anchors, since)
    for member in earlier.values():
        member.blocks = review(member.blocks, slow)
    return list(earlier.values())


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
