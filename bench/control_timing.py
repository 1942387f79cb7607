"""Time the controls through the harness, and compare a network with itself, and with itself slowed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bench.anchor import ARCHITECTURES
from bench.control import CONTROL
from bench.interleave import Limits, Member, measure_group
from bench.job import Job
from bench.measure import BlockPlan
from bench.passes import measure_passes
from bench.process import Oversight, Worker, WorkerError
from bench.records import Block, Timing
from bench.statistic import Interval, latency_ratio

BLOCK = BlockPlan(block_s=0.1, calls=5, discards=2, warmup_s=1.0)
LIMITS = Limits(blocks=8, most_blocks=8, case_s=60.0, target_ci=1e-9)
#: Of a comparison with --repeats: processes of either side, and blocks of each.
PROCESSES, BLOCKS_OF_PROCESS = 8, 8
#: Shorter, so that the sides are closer in time: other guests of a machine come and go within a second.
SHORT_BLOCK = replace(BLOCK, block_s=0.05)
#: Once in so many comparisons with itself a network is compared with each that was slowed, too.
PLANTED_EVERY = 5


def control_job(job: Job, name: str) -> Job:
    """Return *job* for control *name*, with an anchor's network and random weights."""
    case = replace(
        job.case, architecture=ARCHITECTURES[0], backend=CONTROL.name, precision="fp32", batch_size=1, variant=name
    )
    outputs = job.workdir / "selftest-outputs.npy"  # never written: a control is not scored
    return replace(job, case=case, checkpoint=None, reference=None, outputs=outputs, plan=BLOCK, settings={})


def time_controls(
    job: Job, names: Sequence[str], limits: Limits = LIMITS, oversight: Oversight | None = None
) -> dict[str, Timing]:
    """Return the timing of the controls *names*, measured in turns by a worker each.

    Raises:
        WorkerError: If one failed.
    """
    with ExitStack() as stack:
        members = []
        for name in names:
            worker = Worker(control_job(job, name), oversight)
            stack.callback(worker.close)
            members.append(Member(case=worker.job.case, worker=worker))
        for member in members:
            member.worker.ask("open", 1, member.case.threads, 0)
        measure_group(members, [], limits, on_block=_ignore, on_done=_ignore)
    return _timings(members, limits)


def _ignore(member: Member, block: Block | None = None) -> None:
    """Keep nothing: a control has no record."""


def _timings(members: Sequence[Member], limits: Limits) -> dict[str, Timing]:
    """Return what was measured of *members*, by variant.

    Raises:
        WorkerError: If one failed.
    """
    for member in members:
        if member.failure:
            raise WorkerError(f"self-test: {member.case.variant}: {member.failure}")
    return {member.case.variant: member.timing(limits) for member in members}


@dataclass(kw_only=True, slots=True)
class Verdicts:
    """How often a network was called different from a control.

    Attributes:
        asked: Comparisons.
        called: Those whose 95 % interval of the paired ratio does not hold 1.
        lost: Those without an interval, for other work left too little; nothing was called.
        ratios: What each found, where it found anything.
    """

    asked: int = 0
    called: int = 0
    lost: int = 0
    ratios: list[float] = field(default_factory=list)

    def add(self, ratio: Interval) -> None:
        """Count the comparison that gave *ratio*."""
        self.asked += 1
        self.called += ratio.low > 1.0 or ratio.high < 1.0
        self.lost += math.isnan(ratio.low)
        self.ratios += [] if math.isnan(ratio.point) else [ratio.point]

    def __str__(self) -> str:
        """Return the counts, and the geometric mean of the ratios."""
        lost = f", {self.lost} without an interval" if self.lost else ""
        mean = f"; mean ratio {statistics.geometric_mean(self.ratios):.4f}" if self.ratios else ""
        return f"called different {self.called} of {self.asked} times{lost}{mean}"


def compare_networks(job: Job, repeats: int, processes: int) -> dict[str, Verdicts]:
    """Return how often, of *repeats*, a network was called different from itself, and from itself slowed.

    Each comparison has new processes, *processes* of either side, for one is a little faster or slower for
    good (where its memory lies). The slowed ones are compared once in `PLANTED_EVERY` times.

    Raises:
        WorkerError: If a process failed.
    """
    same, planted = "network_again", ("network_slow_2", "network_slow_5")
    found = {name: Verdicts() for name in (same, *planted)}
    for number in range(repeats):
        others = (same,) if number % PLANTED_EVERY else (same, *planted)
        for name in others:
            timings = _time_networks(job, ("network", name), processes, seed=number * processes)
            found[name].add(latency_ratio(timings[name], timings["network"]))
    return found


def _time_networks(job: Job, names: Sequence[str], processes: int, seed: int) -> dict[str, Timing]:
    """Return the timings of the controls *names*, each measured by *processes* new ones."""
    blocks = BLOCKS_OF_PROCESS * processes
    limits = Limits(blocks=blocks, most_blocks=blocks, case_s=60.0, target_ci=1e-9)
    with ExitStack() as stack:

        def open_member(name: str) -> Member:
            worker = Worker(replace(control_job(job, name), plan=SHORT_BLOCK))
            stack.callback(worker.close)
            worker.ask("open", 1, job.case.threads, 0)
            return Member(case=worker.job.case, worker=worker)

        def reopen(member: Member, process: int) -> Member:
            member.worker.close()
            return open_member(member.case.variant)

        members = [open_member(name) for name in names]
        measured = measure_passes(
            members, [], limits, processes, reopen=reopen, on_block=_ignore, on_done=_ignore, seed=seed
        )
    return _timings(measured, limits)
