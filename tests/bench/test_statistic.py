from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from bench.interleave import Limits, why_stop
from bench.machine_facts import DeviceState
from bench.records import Timing
from bench.statistic import (
    FEWEST_SAMPLES,
    counted_samples,
    half_width,
    judge,
    latency_p50,
    latency_percentile,
    latency_ratio,
    throughput,
    throughput_interval,
)
from tests.bench.sample_run import make_timing

EVIDENCE = {"precision": "fp32"}


def test_point_is_the_median_of_all_accepted_samples() -> None:
    timing = make_timing([[1.0, 2.0, 9.0], [3.0, 4.0], [100.0]], rejected=[2])

    assert latency_p50(timing).point == 3.0


def test_interval_is_a_t_interval_on_log_block_medians() -> None:
    # Log medians are -1, 0 and 1: their mean is 0 and their standard deviation 1.
    timing = make_timing([[math.exp(-1)], [1.0], [math.exp(1)]])
    width = stats.t.ppf(0.975, df=2) / math.sqrt(3)

    interval = latency_p50(timing)

    assert interval.low == pytest.approx(math.exp(-width), rel=1e-12)
    assert interval.high == pytest.approx(math.exp(width), rel=1e-12)


def test_half_width_is_half_the_interval_over_its_point() -> None:
    timing = make_timing([[1.0, 1.1], [1.2], [1.3, 1.0]])
    interval = latency_p50(timing)

    assert half_width(timing) == pytest.approx((interval.high - interval.low) / (2 * interval.point), rel=1e-12)


def saturated(*blocks: list[float]) -> Timing:
    return dataclasses.replace(make_timing(blocks), experiment="throughput")


def test_saturated_throughput_is_completions_over_wall_time() -> None:
    # 4 completions in 2 s and 2 in 1 s, of 8 images each.
    interval = throughput_interval(saturated([0.1, 0.9, 0.1, 0.9], [0.5, 0.5]), batch_size=8)

    assert interval.point == pytest.approx(8 * 6 / 3)


def test_its_interval_is_a_t_interval_on_log_block_rates() -> None:
    # Log rates are 1, 0 and -1: slots that end in step, so that half of the times are nearly nothing.
    timing = saturated(*([1e-9, 2 * math.exp(-power) - 1e-9] for power in (1, 0, -1)))
    width = stats.t.ppf(0.975, df=2) / math.sqrt(3)

    interval = throughput_interval(timing, batch_size=1)

    assert interval.low == pytest.approx(interval.point * math.exp(-width), rel=1e-12)
    assert interval.high == pytest.approx(interval.point * math.exp(width), rel=1e-12)
    assert half_width(timing) == pytest.approx(math.sinh(width), rel=1e-12)


def test_one_block_has_a_point_and_no_interval() -> None:
    interval = latency_p50(make_timing([[0.5, 0.5]]))

    assert interval.point == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_no_sample_has_no_latency() -> None:
    assert math.isnan(latency_p50(make_timing([])).point)


def test_figures_come_from_all_blocks_where_none_was_accepted() -> None:
    timing = make_timing([[1.0], [3.0]], rejected=[0, 1])

    assert latency_p50(timing).point == 2.0


def test_rejected_blocks_give_no_sample() -> None:
    timing = make_timing([[1.0], [3.0], [5.0]], rejected=[1])

    assert counted_samples(timing).tolist() == [1.0, 5.0]


def log_samples(generator: np.random.Generator, shape: tuple[int, int, int], correlation: float) -> NDArray[np.float64]:
    """Return log latencies (runs, blocks, calls) with median 0; calls of a block follow an AR(1)."""
    noise = generator.standard_normal(shape)
    samples = np.empty(shape)
    samples[..., 0] = noise[..., 0]
    for call in range(1, shape[-1]):
        samples[..., call] = correlation * samples[..., call - 1] + math.sqrt(1 - correlation**2) * noise[..., call]
    return 0.05 * samples


def coverage(samples: NDArray[np.float64]) -> float:
    """Return in what share of the runs the interval holds the true median, 1."""
    intervals = [latency_p50(make_timing(np.exp(run).tolist())) for run in samples]
    return float(np.mean([interval.low <= 1.0 <= interval.high for interval in intervals]))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_interval_covers_the_true_median_in_95_of_100_runs(correlation: float) -> None:
    samples = log_samples(np.random.default_rng(20260101), (1500, 8, 40), correlation)

    # 1,500 runs at 95 % have a standard error of 0.6 %; the tolerance is 3.5 of them.
    assert coverage(samples) == pytest.approx(0.95, abs=0.02)


def one_process(generator: np.random.Generator, correlation: float, blocks: int, gap: int) -> NDArray[np.float64]:
    """Return latencies (blocks, 40), median 1: one AR(1) through all blocks, *gap* calls between two of them."""
    count = blocks * (40 + gap)
    noise = 0.05 * math.sqrt(1 - correlation**2) * generator.standard_normal(count + 100)
    run: NDArray[np.float64] = np.exp(lfilter([1.0], [1.0, -correlation], noise)[100:])
    return run.reshape(blocks, 40 + gap)[:, :40]


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_interval_covers_in_90_of_100_runs_where_block_follows_block(correlation: float) -> None:
    generator = np.random.default_rng(20260102)
    runs = np.array([one_process(generator, correlation, blocks=8, gap=0) for _ in range(1000)])

    assert coverage(np.log(runs)) >= 0.90


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_interval_covers_in_90_of_100_runs_where_it_decides_when_to_stop(correlation: float) -> None:
    limits = Limits(blocks=8, most_blocks=64, case_s=1e9, target_ci=0.01)
    generator, covered, lengths = np.random.default_rng(20260102), 0, set()
    for _ in range(400):
        # The anchor's block, at least, lies between two blocks of a case.
        run = one_process(generator, correlation, blocks=64, gap=40)
        looks = (make_timing(run[:count].tolist()) for count in range(8, 65))
        timing = next(timing for timing in looks if why_stop(timing, limits))
        interval = latency_p50(timing)
        covered += interval.low <= 1.0 <= interval.high
        lengths.add(len(timing.blocks))

    assert covered / 400 >= 0.90
    assert len(lengths) > 1  # it did decide


def of_processes(logs: NDArray[np.float64]) -> Timing:
    """Return a timing of *logs* (processes, blocks, calls), log latencies."""
    blocks = [
        dataclasses.replace(block, process=number)
        for number, process in enumerate(logs)
        for block in make_timing(np.exp(process).tolist()).blocks
    ]
    return replace(
        make_timing([]),
        blocks=tuple(dataclasses.replace(block, round=turn) for turn, block in enumerate(blocks)),
    )


def test_interval_over_processes_is_a_t_interval_on_their_means() -> None:
    timing = of_processes(np.log([[[1.0], [3.0]], [[4.0], [2.0]], [[5.0], [5.0]]]))
    means = np.array([math.log(3) / 2, math.log(8) / 2, math.log(5)])

    interval = latency_p50(timing)

    width = stats.t.ppf(0.975, df=2) * means.std(ddof=1) / math.sqrt(3)
    assert interval.high / interval.point == pytest.approx(math.exp(width))
    assert interval.point / interval.low == pytest.approx(math.exp(width))


@pytest.mark.parametrize("processes", [3, 5])
def test_interval_over_processes_covers_where_each_is_fast_or_slow_for_good(processes: int) -> None:
    generator = np.random.default_rng(20260103)
    for_good = 0.01 * generator.standard_normal((1000, processes, 1, 1))
    runs = for_good + 0.02 * generator.standard_normal((1000, processes, 5, 20))
    intervals = [latency_p50(of_processes(run)) for run in runs]

    assert np.mean([interval.low <= 1.0 <= interval.high for interval in intervals]) >= 0.93
    assert coverage(runs.reshape(1000, processes * 5, 20)) < 0.85  # as if all blocks were of one


def test_a_process_whose_every_block_was_rejected_makes_a_row_contended() -> None:
    steady = of_processes(np.zeros((3, 8, 2)))
    lost = replace(steady, blocks=tuple(replace(block, accepted=block.process != 1) for block in steady.blocks))

    assert judge(steady, EVIDENCE, "fp32") == "valid"
    assert judge(lost, EVIDENCE, "fp32") == "contended"


def test_ratio_over_processes_is_taken_of_their_means() -> None:
    logs = np.log([[[1.0], [3.0]], [[4.0], [2.0]], [[5.0], [5.0]]])
    means = np.array([math.log(3) / 2, math.log(8) / 2, math.log(5)])

    ratio = latency_ratio(of_processes(logs), of_processes(np.zeros_like(logs)))

    assert ratio.point == pytest.approx(math.exp(means.mean()))
    width = stats.t.ppf(0.975, df=2) * means.std(ddof=1) / math.sqrt(3)
    assert ratio.high / ratio.point == pytest.approx(math.exp(width))


def test_calls_as_units_would_cover_far_less_when_they_are_correlated() -> None:
    samples = log_samples(np.random.default_rng(20260101), (200, 8, 40), 0.9)
    calls = samples.reshape(200, 320, 1)

    assert coverage(calls) < 0.75


@pytest.mark.parametrize(("percent", "fewest"), FEWEST_SAMPLES.items())
def test_fewest_samples_leave_two_beyond_the_percentile_with_99_percent(percent: int, fewest: int) -> None:
    beyond = 1 - percent / 100

    assert stats.binom.cdf(1, fewest, beyond) <= 0.01
    assert stats.binom.cdf(1, fewest - 1, beyond) > 0.01


@pytest.mark.parametrize(("percent", "fewest"), FEWEST_SAMPLES.items())
def test_percentile_needs_its_fewest_samples(percent: int, fewest: int) -> None:
    assert latency_percentile(make_timing([[0.1] * (fewest - 1)]), percent) is None
    assert latency_percentile(make_timing([[0.1] * fewest]), percent) == 0.1


def test_percentile_keeps_the_whole_tail() -> None:
    timing = make_timing([[float(value) for value in range(1, 101)]])

    assert latency_percentile(timing, 90) == 90.0


def test_ratio_is_that_of_the_paired_t_test_on_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(0.0, 0.1, 10), rng.lognormal(0.05, 0.1, 10)

    ratio = latency_ratio(make_timing([[value] for value in first]), make_timing([[value] for value in second]))

    expected = stats.ttest_rel(np.log(first), np.log(second)).confidence_interval()
    assert (math.log(ratio.low), math.log(ratio.high)) == pytest.approx((expected.low, expected.high))


def test_ratio_takes_rounds_in_which_both_were_accepted() -> None:
    first = make_timing([[2.0], [2.2], [9.0], [2.0]], rejected=[2])
    second = make_timing([[1.0], [1.1], [1.0]])

    assert latency_ratio(first, second).point == pytest.approx(2.0)


def test_ratio_of_one_pair_has_no_interval_and_of_none_no_value() -> None:
    one, none = make_timing([[2.0]]), make_timing([])

    assert math.isnan(latency_ratio(one, one).low)
    assert math.isnan(latency_ratio(one, none).point)


def test_what_slows_both_alike_does_not_widen_their_ratio() -> None:
    rng = np.random.default_rng(1)
    drift, own = rng.uniform(1, 2, 12), rng.normal(1, 0.005, (2, 12))
    first, second = (
        make_timing([[value] for value in drift * 1.05 * own[0]]),
        make_timing([[v] for v in drift * own[1]]),
    )

    ratio = latency_ratio(first, second)

    assert 1.0 < ratio.low < 1.05 < ratio.high
    assert ratio.high - ratio.low < 0.02


def test_throughput_is_images_over_wall_time() -> None:
    timing = make_timing([[0.1, 0.3], [0.4], [99.0]], rejected=[2])

    assert throughput(timing, 32) == pytest.approx(3 * 32 / 0.8, rel=1e-12)


def steady_timing(blocks: int = 4, **changes: object) -> Timing:
    return make_timing([[0.1] * 5] * blocks, **changes)  # type: ignore[arg-type]  # a test names its own fields


def test_steady_timing_is_valid() -> None:
    assert judge(steady_timing(required_blocks=4), EVIDENCE, "fp32") == "valid"


def test_named_fallback_is_a_fallback() -> None:
    evidence = {**EVIDENCE, "fallback": "3 nodes on the CPU provider"}

    assert judge(steady_timing(), evidence, "fp32") == "fallback"


def test_another_precision_is_a_fallback() -> None:
    assert judge(steady_timing(), EVIDENCE, "bf16") == "fallback"


def test_fallback_outranks_contended() -> None:
    timing = steady_timing(rejected=range(4))

    assert judge(timing, EVIDENCE, "bf16") == "fallback"


def test_too_few_blocks_beside_rejected_ones_is_contended() -> None:
    timing = steady_timing(rejected=[0], required_blocks=4)

    assert judge(timing, EVIDENCE, "fp32") == "contended"


def test_enough_blocks_beside_rejected_ones_is_valid() -> None:
    timing = steady_timing(rejected=[0], required_blocks=3)

    assert judge(timing, EVIDENCE, "fp32") == "valid"


@pytest.mark.parametrize(("load", "validity"), [(0.07, "valid"), (0.09, "contended"), (math.nan, "valid")])
def test_blocks_that_had_too_much_foreign_load_on_average_are_contended(load: float, validity: str) -> None:
    timing = steady_timing(required_blocks=4)
    blocks = tuple(dataclasses.replace(block, foreign_load=load) for block in timing.blocks)

    assert judge(dataclasses.replace(timing, blocks=blocks), EVIDENCE, "fp32") == validity


def test_too_few_blocks_with_none_rejected_is_undersampled() -> None:
    assert judge(steady_timing(required_blocks=5), EVIDENCE, "fp32") == "undersampled"


def test_warmup_that_never_settled_is_unstable() -> None:
    assert judge(steady_timing(settled=False), EVIDENCE, "fp32") == "unstable"


def slowed(timing: Timing, *turns: int) -> Timing:
    """Return *timing* as of a GPU that was slowed in the blocks *turns*."""
    states = [DeviceState(slowdowns=("power cap",) if turn in turns else ()) for turn in range(len(timing.blocks))]
    blocks = (replace(block, device=state) for block, state in zip(timing.blocks, states, strict=True))
    return replace(timing, blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("turns", "validity"), [((), "valid"), ((0, 3), "valid"), ((0, 3, 5), "throttled"), (range(8), "throttled")]
)
def test_more_than_a_quarter_of_slowed_blocks_is_throttled(turns: Iterable[int], validity: str) -> None:
    assert judge(slowed(steady_timing(blocks=8), *turns), EVIDENCE, "fp32") == validity


def test_slowed_blocks_that_do_not_count_throttle_nothing() -> None:
    timing = slowed(steady_timing(blocks=8, rejected=range(4), required_blocks=4), *range(4))

    assert judge(timing, EVIDENCE, "fp32") == "valid"


def test_a_gpu_that_tells_nothing_is_not_throttled() -> None:
    timing = steady_timing(blocks=8)
    silent = replace(timing, blocks=tuple(replace(block, device=DeviceState()) for block in timing.blocks))

    assert judge(silent, EVIDENCE, "fp32") == "valid"


@pytest.mark.parametrize(
    ("changes", "validity"),
    [
        ({"required_blocks": 9}, "undersampled"),
        ({"required_blocks": 8, "rejected": [0]}, "contended"),
        ({"settled": False}, "throttled"),
    ],
)
def test_throttled_stands_between_undersampled_and_unstable(changes: dict[str, object], validity: str) -> None:
    assert judge(slowed(steady_timing(blocks=8, **changes), *range(8)), EVIDENCE, "fp32") == validity


@pytest.mark.parametrize(("spread", "validity"), [(0.04, "valid"), (0.06, "unstable")])
def test_interval_wider_than_five_percent_is_unstable(spread: float, validity: str) -> None:
    # Two log medians at +-a have the half-width t * a, with t = 12.7062 at one degree of freedom.
    offset = math.asinh(spread) / stats.t.ppf(0.975, df=1)
    timing = make_timing([[math.exp(-offset)], [math.exp(offset)]])

    assert judge(timing, EVIDENCE, "fp32") == validity
