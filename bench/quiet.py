"""What the anchor says of the machine: in which rounds it was slower than it can be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from bench.records import ANCHOR, Block

#: Anchor blocks below which nothing is known of how fast it can be.
FEWEST_BLOCKS = 8
#: Quantile of the anchor's block medians that is its quiet level: low, so that it is found where
#: most of a run was disturbed, and not the minimum, which one lucky block decides.
QUIET_QUANTILE = 0.1
#: Multiple of the quiet level above which a round was disturbed.
SLOW_ANCHOR = 1.15


def slow_rounds(blocks: Sequence[Block], since: int) -> frozenset[int]:
    """Return the rounds of the present group in which the anchor took over `SLOW_ANCHOR` of its quiet level.

    A block of the anchor that was rejected for foreign load says nothing. One that was slow stays
    among those of which the level is taken: a machine that has become slow for good, and was never
    quiet again, is accepted once nine tenths of the run were like that.

    Args:
        blocks: The anchor's, of the whole run so far.
        since: Index of the first one of the present group.
    """
    medians = [float(np.median(block.samples_s)) for block in blocks if block.accepted]
    if len(medians) < FEWEST_BLOCKS:
        return frozenset()
    limit_s = SLOW_ANCHOR * float(np.quantile(medians, QUIET_QUANTILE))
    return frozenset(block.round for block in blocks[since:] if block.accepted and np.median(block.samples_s) > limit_s)


def review(blocks: Sequence[Block], slow: Collection[int]) -> list[Block]:
    """Return *blocks* of one case, rejected for the anchor in the rounds *slow* and no others.

    What was rejected for foreign load stays rejected; what was for the anchor may count again, when
    more blocks have told its quiet level better.
    """

    def judge(block: Block) -> Block:
        if not block.accepted and block.rejected_for != ANCHOR:
            return block
        is_slow = block.round in slow
        return replace(block, accepted=not is_slow, rejected_for=ANCHOR if is_slow else "")

    return [judge(block) for block in blocks]
