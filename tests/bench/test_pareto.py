from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics import CostMetric
from bench.pareto import Point, frontier

LATENCY = CostMetric(name="latency_p50_s", unit="s", better="lower", compute=lambda record: None)
AUC = CostMetric(name="auc", unit="", better="higher", compute=lambda record: None)
METRICS = st.sampled_from([LATENCY, AUC])
# Few distinct values, so that ties on one and on both metrics are common.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


def make_points(values: Sequence[tuple[float, float]], task: str = "substructure") -> list[Point]:
    return [Point(task=task, key=f"case{index}", x=x, y=y) for index, (x, y) in enumerate(values)]


POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=24).map(make_points)


def beats(one: Point, other: Point, x: CostMetric, y: CostMetric) -> bool:
    x_gain = (other.x - one.x) if x.better == "lower" else (one.x - other.x)
    y_gain = (other.y - one.y) if y.better == "lower" else (one.y - other.y)
    # inf - inf is NaN and means equal here.
    x_gain, y_gain = (0.0 if math.isnan(gain) else gain for gain in (x_gain, y_gain))
    return x_gain >= 0 and y_gain >= 0 and (x_gain > 0 or y_gain > 0)


def test_frontier_drops_dominated_points() -> None:
    points = make_points([(1.0, 0.9), (2.0, 0.8), (2.0, 0.95)])

    kept = frontier(points, LATENCY, AUC)

    assert [point.key for point in kept] == ["case0", "case2"]


def test_frontier_keeps_ties_on_both_metrics() -> None:
    points = make_points([(1.0, 0.9), (1.0, 0.9)])

    assert frontier(points, LATENCY, AUC) == points


def test_frontier_drops_the_worse_of_a_tie_on_one_metric() -> None:
    points = make_points([(1.0, 0.8), (1.0, 0.9), (2.0, 0.9)])

    assert [point.key for point in frontier(points, LATENCY, AUC)] == ["case1"]


def test_frontier_drops_nan() -> None:
    points = make_points([(math.nan, 1.0), (1.0, math.nan), (5.0, 0.5)])

    assert [point.key for point in frontier(points, LATENCY, AUC)] == ["case2"]


def test_frontier_of_nothing_is_empty() -> None:
    assert frontier([], LATENCY, AUC) == []


def test_frontier_refuses_mixed_tasks() -> None:
    points = [*make_points([(1.0, 0.9)]), *make_points([(1.0, 1e-4)], task="halo_mass")]

    with pytest.raises(ValueError, match="halo_mass, substructure"):
        frontier(points, LATENCY, AUC)


@given(points=POINTS, x=METRICS, y=METRICS)
def test_frontier_equals_brute_force_dominance(points: list[Point], x: CostMetric, y: CostMetric) -> None:
    candidates = [point for point in points if not (math.isnan(point.x) or math.isnan(point.y))]
    expected = {point for point in candidates if not any(beats(other, point, x, y) for other in candidates)}

    kept = frontier(points, x, y)

    assert set(kept) == expected
    assert len(kept) == len(expected)


@given(points=POINTS, x=METRICS, y=METRICS)
def test_frontier_is_sorted_by_x_best_first(points: list[Point], x: CostMetric, y: CostMetric) -> None:
    values = [point.x for point in frontier(points, x, y)]

    assert values == sorted(values, reverse=x.better == "higher")


@given(points=POINTS, x=METRICS, y=METRICS)
def test_frontier_of_a_frontier_is_itself(points: list[Point], x: CostMetric, y: CostMetric) -> None:
    kept = frontier(points, x, y)

    assert frontier(kept, x, y) == kept
