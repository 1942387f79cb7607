"""Sizes of work: how much data, how long a fit, how many blocks. The README prints this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Numbers of images of one data set; the validation images come out of the training images."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One size of work, the same for fitting and for measuring.

    Attributes:
        split: Numbers of images by task name; ``default`` serves the tasks that are not named.
        epochs: Epochs of a fit by task name; ``default`` serves the tasks that are not named.
        step_capped: Whether `ArchitectureSpec.quick` ends a fit before its epochs do. Such
            networks are labelled unconverged.
        blocks: Clean blocks that a row needs to be valid.
        most_blocks: Blocks after which measuring stops, whatever the interval.
        block_s: Shortest block [s].
        block_calls: Fewest calls in a block.
        discards: Calls thrown away at the start of a block.
        case_s: Seconds of measuring that one case may use; `--time-budget` overrides it.
        stage_s: Seconds after which one stage of a case (a build, a scoring, a block) is taken for
            hung; `--case-timeout` overrides it.
        samples: Samples that a case collects as long as its time permits, for the tail of its latency.
        saturated_share: Share of blocks and seconds that saturated throughput gets on top of them.
        end_to_end_calls: Timed calls from the store to the answers, in a tenth of `case_s` at most.
        energy_s: Seconds of calls over which the energy of a case is counted; 0 for none.
        processes: Processes, one after the other, among which the blocks of a case's latency are
            divided; `--processes` overrides it.
        builds: Builds of an artifact of which no two need be alike (a TensorRT engine), a process each;
            `--builds` overrides it.
    """

    name: str
    split: Mapping[str, Split]
    epochs: Mapping[str, int]
    step_capped: bool
    blocks: int
    most_blocks: int
    block_s: float
    block_calls: int
    discards: int
    case_s: float
    stage_s: float
    samples: int
    saturated_share: float
    end_to_end_calls: int
    energy_s: float
    processes: int
    builds: int = 1

    def split_for(self, task: str) -> Split:
        """Return the numbers of images for *task*."""
        return self.split.get(task, self.split["default"])

    def epochs_for(self, task: str) -> int:
        """Return the epochs of a fit to *task*."""
        return self.epochs.get(task, self.epochs["default"])


PRESETS: Mapping[str, Preset] = {
    row.name: row
    for row in (
        Preset(
            name="quick",
            split={"default": Split(train=1800, validation=200, test=300)},
            epochs={"default": 4},
            step_capped=True,
            blocks=8,
            most_blocks=8,
            block_s=0.2,
            block_calls=2,
            discards=1,
            case_s=5.0,
            stage_s=600.0,
            samples=0,
            saturated_share=0.5,
            end_to_end_calls=20,
            energy_s=0.0,
            processes=1,
        ),
        Preset(
            name="standard",
            split={"default": Split(train=5400, validation=600, test=1000)},
            epochs={"default": 10},
            step_capped=False,
            blocks=8,
            most_blocks=32,
            block_s=0.3,
            block_calls=5,
            discards=3,
            case_s=30.0,
            stage_s=1800.0,
            samples=64,  # a p90
            saturated_share=0.4,
            end_to_end_calls=50,
            energy_s=10.0,
            processes=3,
        ),
        Preset(
            name="reference",
            # The published sizes: 30,000 of which a tenth validates / 3,000, and 20,000 at 81 : 9 : 10.
            split={
                "default": Split(train=27000, validation=3000, test=3000),
                "halo_mass": Split(train=16200, validation=1800, test=2000),
                # Simulated galaxies compare with no published number; these are an hour's work of two cores.
                "galaxy_morphology": Split(train=10800, validation=1200, test=3000),
            },
            # A mass is learned more slowly than a class.
            epochs={"default": 12, "halo_mass": 24},
            step_capped=False,
            blocks=8,
            most_blocks=64,
            block_s=0.3,
            block_calls=5,
            discards=3,
            case_s=120.0,
            stage_s=3600.0,
            samples=662,  # a p99
            saturated_share=0.25,
            end_to_end_calls=200,
            energy_s=30.0,
            processes=6,
            builds=3,
        ),
    )
}
