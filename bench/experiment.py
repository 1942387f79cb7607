"""What is measured of a case beside its latency: the way through all stages, and what it gives at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.crew import compared_images
from bench.interleave import BLOCK_PATIENCE_S, Limits, Member, block_limit, measure_group
from bench.largest import Largest
from bench.machine_facts import Energy
from bench.measure import LoadMeter, stopwatch
from bench.process import WorkerError
from bench.records import Block, Scalar, Stages, Timing
from bench.saturate import IN_FLIGHT
from bench.scored import hold_to_scored, scored_facts

#: In the order of a worker's answer.
STAGES = ("decode_s", "preprocess_s", "copy_in_s", "compute_s", "copy_out_s", "whole_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """How much is measured beside latency.

    Attributes:
        saturated: When the blocks of saturated throughput are enough.
        end_to_end_calls: Timed calls from the store to the answers.
        end_to_end_s: Seconds after which fewer are enough.
        has_largest_batch: Whether the largest batch is looked for.
    """

    saturated: Limits
    end_to_end_calls: int
    end_to_end_s: float
    has_largest_batch: bool


@dataclass(kw_only=True, slots=True)
class Findings:
    """What is known of a case whose latency has been measured; what was not measured stays empty.

    Attributes:
        remarks: What went wrong beside the latency, which stands all the same.
    """

    evidence: dict[str, Scalar]
    input_digest: str
    end_to_end: Stages | None = None
    gpu_samples_s: tuple[float, ...] = ()
    energy: Energy | None = None
    throughput_timing: Timing | None = None
    largest: Largest | None = None
    remarks: list[str]


def gather(member: Member) -> Findings:
    """Return the evidence of the session on which the latency of *member* was measured.

    Raises:
        WorkerError: If the worker cannot tell.
    """
    evidence, digest = member.worker.ask("evidence")
    return Findings(evidence=dict(evidence), input_digest=digest, remarks=[])


def time_end_to_end(member: Member, findings: Findings, extras: Extras) -> None:
    """Time the stages of *member*'s open session into *findings*."""
    meter = LoadMeter([member.worker.pid], member.case.threads)
    elapsed = stopwatch()
    try:
        columns = member.worker.ask(
            "end_to_end", extras.end_to_end_calls, extras.end_to_end_s, patience_s=BLOCK_PATIENCE_S
        )
    except WorkerError as error:
        findings.remarks.append(f"end to end: {error}")
        return
    wall_s, load = elapsed(), meter.read()
    samples = dict(zip(STAGES, columns, strict=True))
    is_quiet = not load > block_limit(wall_s, member.case.threads)
    findings.end_to_end = Stages(**samples, foreign_load=load, accepted=is_quiet)


def time_gpu(member: Member, findings: Findings, extras: Extras) -> None:
    """Time what the GPU takes for a request of *member*'s open session into *findings*; nothing on a CPU."""
    if member.case.device != "cuda":
        return
    calls, most_s = extras.end_to_end_calls, extras.end_to_end_s
    try:
        findings.gpu_samples_s = member.worker.ask("gpu_times", calls, most_s, patience_s=BLOCK_PATIENCE_S)
    except WorkerError as error:
        findings.remarks.append(f"time of the GPU: {error}")


def saturate_together(
    members: Sequence[Member],
    findings: Mapping[str, Findings],
    limits: Limits,
    on_block: Callable[[Member, Block], None],
    seed: int = 0,
) -> float:
    """Measure saturated throughput of *members*, in turns, into their *findings* by case key.

    Their sessions are made anew for two requests in flight. One that fails keeps its latency; one that has
    fewer threads than requests on a CPU is not measured.

    Returns:
        The wall time of the blocks that do not count [s].
    """

    def ignore(member: Member) -> None:
        """Wait for the others: the findings are read when all are done."""

    # On a CPU each caller computes: one thread of a case is not enough for two.
    able = [member for member in members if member.case.device != "cpu" or member.case.threads >= IN_FLIGHT]
    doubled = [Member(case=member.case, worker=member.worker, experiment="throughput") for member in able]
    for member in doubled:
        try:
            member.failure = member.worker.ask("saturate", compared_images(member.case))
        except WorkerError as error:
            member.failure = str(error)
    ready = [member for member in doubled if not member.failure]
    measure_group(ready, [], limits, on_block, on_done=ignore, seed=seed)
    for member in doubled:
        known = findings[member.case.key]
        if not member.failure:
            try:
                known.evidence.update(differing(member.worker.ask("proof"), known.evidence))
            except WorkerError as error:
                member.failure = str(error)
        if member.failure:
            known.remarks.append(f"saturated throughput: {member.failure}")
        else:
            known.throughput_timing = member.timing(limits)
    return sum(member.rejected_s for member in doubled)


def differing(evidence: Mapping[str, Scalar], of_latency: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what the *evidence* of the saturated session says otherwise, under names of its own."""
    # A fallback of the one is none of the other.
    said = {"fallback": "", **evidence} if of_latency.get("fallback") else dict(evidence)
    # But what was scored is the same for both.
    if reason := hold_to_scored(evidence, scored_facts(of_latency)):
        said["fallback"] = said.get("fallback") or reason
    return {f"saturated_{name}": value for name, value in said.items() if of_latency.get(name) != value}
