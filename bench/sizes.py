"""How much a run measures: the preset's sizes, and what the options make of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bench.experiment import Extras
from bench.interleave import Limits
from bench.measure import BlockPlan
from bench.plan import resolve_builds
from lensing_models.preset import Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        block: Of each block.
        limits: When the latency of a case is known well enough.
        extras: What beside latency.
        timed: Whether there is any timing.
        energy_s: Window of the energy [s]; 0 for none.
        processes: Among which the blocks of a case's latency are divided.
        builds: Of an artifact of which no two need be alike, at most one a process.
    """

    block: BlockPlan
    limits: Limits
    extras: Extras
    timed: bool
    energy_s: float = 0.0
    processes: int = 1
    builds: int = 1


def choose_sizes(preset: Preset, options: argparse.Namespace) -> Sizes:
    """Return how much is measured with *preset* under the *options* of `bench.run`."""
    case_s = options.time_budget or preset.case_s
    return Sizes(
        block=BlockPlan(
            block_s=preset.block_s, calls=preset.block_calls, discards=preset.discards, warmup_s=case_s / 4
        ),
        limits=Limits(
            blocks=preset.blocks,
            most_blocks=preset.most_blocks,
            case_s=case_s,
            target_ci=options.target_ci,
            samples=preset.samples,
        ),
        extras=choose_extras(preset, case_s, options),
        timed=not options.verify,
        energy_s=preset.energy_s,
        processes=options.processes or preset.processes,
        builds=resolve_builds(options.builds, options.processes or preset.processes, preset.builds),
    )


def choose_extras(preset: Preset, case_s: float, options: argparse.Namespace) -> Extras:
    """Return how much *preset* measures beside latency, where a case has *case_s* seconds for that."""
    most_blocks = max(2, round(preset.saturated_share * preset.most_blocks))
    saturated = Limits(
        blocks=min(preset.blocks, most_blocks),
        most_blocks=most_blocks,
        case_s=preset.saturated_share * case_s,
        target_ci=options.target_ci,
    )
    return Extras(
        saturated=saturated,
        end_to_end_calls=preset.end_to_end_calls,
        end_to_end_s=case_s / 10,
        has_largest_batch=options.find_largest_batch,
    )
