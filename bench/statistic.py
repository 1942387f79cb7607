"""What raw samples say: intervals, percentiles, throughput, and how far a row can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bench.records import FOREIGN_LIMIT, Block, Scalar, Timing, Validity

CONFIDENCE = 0.95
UNSTABLE_HALF_WIDTH = 0.05
#: Share of the counted blocks with a slowdown of the GPU beyond which a row is one of a slowed GPU.
MOST_SLOWED = 0.25

# The fewest samples of which at least two lie beyond the percentile with 99 % confidence: the
# smallest n whose binomial P(at most one beyond) is at most 1 %. MLPerf Inference rules, appendix
# "Early stopping criterion", give the same 64 and 662.
FEWEST_SAMPLES: Mapping[int, int] = {90: 64, 99: 662}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with its 95 % confidence interval; the bounds are NaN where there is none."""

    point: float
    low: float
    high: float


def accepted_blocks(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return those of *blocks* that other people's work did not spoil."""
    return tuple(block for block in blocks if block.accepted)


def timed_s(blocks: Sequence[Block]) -> float:
    """Return the wall time of all timed calls of *blocks* [s]."""
    return sum(sum(block.samples_s) for block in blocks)


def lost_processes(blocks: Sequence[Block]) -> list[int]:
    """Return the processes none of whose *blocks* is accepted: an interval without them would be too narrow."""
    return sorted({block.process for block in blocks} - {block.process for block in accepted_blocks(blocks)})


def counted_blocks(timing: Timing) -> tuple[Block, ...]:
    """Return the accepted blocks, or every block where none was accepted.

    The figures of a case whose every block was disturbed are worth showing; `judge` says that
    they were.
    """
    return accepted_blocks(timing.blocks) or timing.blocks


def counted_samples(timing: Timing) -> NDArray[np.float64]:
    """Return the wall times of the calls in the counted blocks, in the order measured [s]."""
    return np.array([sample for block in counted_blocks(timing) for sample in block.samples_s], dtype=np.float64)


def block_medians(timing: Timing) -> NDArray[np.float64]:
    """Return the median wall time of each counted block [s]."""
    return np.array([np.median(block.samples_s) for block in counted_blocks(timing)], dtype=np.float64)


def block_means(timing: Timing) -> NDArray[np.float64]:
    """Return the mean time between completions of each counted block [s], the inverse of its rate."""
    return np.array([np.mean(block.samples_s) for block in counted_blocks(timing)], dtype=np.float64)


def latency_p50(timing: Timing) -> Interval:
    """Return the median latency of a call with its 95 % interval [s].

    The point is the median of all counted samples; the interval is ``point * exp(+-h)``, h being
    the half-width of a t-interval on the logarithms of the block medians. Neighbouring calls
    resemble each other, so the block, not the call, is the unit; where there were several processes,
    each of which may be faster or slower for good, their means are.

    Returns:
        NaN bounds with fewer than two counted blocks; all NaN without a sample.
    """
    samples = counted_samples(timing)
    if not samples.size:
        return Interval(point=math.nan, low=math.nan, high=math.nan)
    point, width = float(np.median(samples)), _log_half_width(timing)
    return Interval(point=point, low=point * math.exp(-width), high=point * math.exp(width))


def latency_ratio(first: Timing, second: Timing) -> Interval:
    """Return how many times longer a call of *first* takes than one of *second*, with its 95 % interval.

    Blocks of the same round, both accepted, are pairs: what slowed the machine in that round slowed
    both. The point is the geometric mean of the ratios of their medians, the interval a t-interval
    on the logarithms.

    Returns:
        NaN bounds with fewer than two pairs; all NaN without one.
    """
    medians = [
        {block.round: np.median(block.samples_s) for block in accepted_blocks(timing.blocks)}
        for timing in (first, second)
    ]
    rounds = sorted(medians[0].keys() & medians[1].keys())
    if not rounds:
        return Interval(point=math.nan, low=math.nan, high=math.nan)
    logs = np.array([math.log(medians[0][number] / medians[1][number]) for number in rounds])
    unit = {block.round: _unit(first, block) for block in first.blocks}
    units = _by_unit(logs, [unit[number] for number in rounds])
    point, width = math.exp(float(logs.mean())), _t_half_width(units)
    return Interval(point=point, low=point * math.exp(-width), high=point * math.exp(width))


def half_width(timing: Timing) -> float:
    """Return half the width of the interval of what *timing* measures over its point; NaN where it has none.

    That is `latency_p50`, or `throughput_interval`.
    """
    return math.sinh(_log_half_width(timing))


def latency_percentile(timing: Timing, percent: int) -> float | None:
    """Return the *percent* percentile of the latency [s], or None with too few samples for it.

    Args:
        timing: Raw samples; the whole tail counts.
        percent: A key of `FEWEST_SAMPLES`.

    Returns:
        The smallest sample that no more than ``100 - percent`` in a hundred exceed.
    """
    samples = counted_samples(timing)
    if samples.size < FEWEST_SAMPLES[percent]:
        return None
    return float(np.percentile(samples, percent, method="inverted_cdf"))


def build_medians(timing: Timing) -> list[float]:
    """Return the median latency of each build of the artifact [s], by number; NaN for one without a counted block."""
    numbers = np.array([block.process % timing.builds for block in counted_blocks(timing)])
    medians = block_medians(timing)
    chosen = [medians[numbers == number] for number in range(timing.builds)]
    return [float(np.median(values)) if values.size else math.nan for values in chosen]


def throughput(timing: Timing, batch_size: int) -> float:
    """Return images per second of wall time; NaN without a sample.

    With one request in flight the samples are its calls, with more the times between completions:
    either way there is one a batch, and they add up to the wall time.
    """
    samples = counted_samples(timing)
    return float(batch_size * samples.size / samples.sum()) if samples.size else math.nan


def throughput_interval(timing: Timing, batch_size: int) -> Interval:
    """Return `throughput` of a timing of that experiment with its 95 % interval [img/s].

    The interval is ``point * exp(+-h)``, h being the half-width of a t-interval on the logarithms
    of the rates of the blocks.

    Returns:
        NaN bounds with fewer than two counted blocks; all NaN without a sample.
    """
    point, width = throughput(timing, batch_size), _log_half_width(timing)
    return Interval(point=point, low=point * math.exp(-width), high=point * math.exp(width))


def median(samples: Sequence[float]) -> float | None:
    """Return the median of *samples*; None without one."""
    return float(np.median(samples)) if len(samples) else None


def judge(timing: Timing, evidence: Mapping[str, Scalar], precision: str) -> Validity:
    """Return how far the timing of a case can be trusted: the first of these that holds.

    ``fallback``: the runtime did something else than the case says. ``contended``: too few blocks
    were accepted, or none of one process, because other people's work disturbed some; or the accepted ones
    had more than `FOREIGN_LIMIT` of it on average.
    ``undersampled``: too few, without that excuse. ``throttled``: power or heat slowed the GPU in
    more than a quarter of the counted blocks, which may have made it unstable too. ``unstable``: the
    warm-up never settled, or the interval is wider than +-5 %.

    Args:
        timing: Raw samples.
        evidence: Proof of what ran, from the session.
        precision: Precision that the case asks for.
    """
    if evidence.get("fallback") or evidence.get("precision", precision) != precision:
        return "fallback"
    accepted = len(accepted_blocks(timing.blocks))
    if accepted < timing.required_blocks or lost_processes(timing.blocks):
        return "contended" if accepted < len(timing.blocks) else "undersampled"
    if mean_foreign_load(timing) > FOREIGN_LIMIT:
        return "contended"
    if slowed_share(timing) > MOST_SLOWED:
        return "throttled"
    # Written so that NaN, an interval that does not exist, is unstable too.
    if not (timing.settled and half_width(timing) <= UNSTABLE_HALF_WIDTH):
        return "unstable"
    return "valid"


def mean_foreign_load(timing: Timing) -> float:
    """Return the foreign load over all counted blocks; 0 where nothing tells."""
    blocks = [block for block in counted_blocks(timing) if not math.isnan(block.foreign_load)]
    weights = [sum(block.samples_s) for block in blocks]
    return float(np.average([block.foreign_load for block in blocks], weights=weights)) if sum(weights) else 0.0


def slowed_share(timing: Timing) -> float:
    """Return in what share of the counted blocks power or heat slowed the GPU; 0 where nothing tells."""
    blocks = counted_blocks(timing)
    return sum(bool(block.device and block.device.slowdowns) for block in blocks) / max(len(blocks), 1)


def _log_half_width(timing: Timing) -> float:
    """Return the half-width of the t-interval on the log block medians, or means; NaN below two units."""
    # Times between completions have two modes where slots end in step: their median says nothing.
    logs = np.log(block_means(timing) if timing.experiment == "throughput" else block_medians(timing))
    return _t_half_width(_by_unit(logs, [_unit(timing, block) for block in counted_blocks(timing)]))


def _unit(timing: Timing, block: Block) -> int:
    """Return the number of what *block* was measured in: the build if there are several, or else the process."""
    return block.process % timing.builds if timing.builds > 1 else block.process


def _by_unit(values: NDArray[np.float64], units: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean of *values* for each process, or build; the values themselves where all are of one.

    Blocks of a process share what its start has given it for good, such as where its memory lies;
    with several the process is the unit, and with several builds the build (Kalibera and Jones 2013,
    "Rigorous benchmarking in reasonable time", section 6).
    """
    numbers = np.array(units)
    known = np.unique(numbers)
    return values if known.size < 2 else np.array([values[numbers == number].mean() for number in known])


def _t_half_width(values: NDArray[np.float64]) -> float:
    """Return the half-width of the t-interval on the mean of *values*; NaN below two."""
    count = values.size
    if count < 2:
        return math.nan
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
