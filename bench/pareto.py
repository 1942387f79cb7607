"""The frontier of two metrics: to what no other choice is as good on both and better on one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class Directed(Protocol):
    """Whatever says which of two values is better: a cost metric or a quality metric."""

    @property
    def name(self) -> str:
        """Return the column name."""
        ...

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Return the direction that is better."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One candidate: the key of its case and its value on two metrics."""

    task: str
    key: str
    x: float
    y: float


def frontier(points: Sequence[Point], x: Directed, y: Directed) -> list[Point]:
    """Return the points that no other point beats on both metrics.

    A point beats another if it is as good on both metrics and better on one.

    Args:
        points: Candidates in any order; one with NaN on either metric is dropped.
        x: Metric on the horizontal axis; `x.better` sets the direction.
        y: Metric on the vertical axis.

    Returns:
        The frontier sorted by *x*, best first; ties on both metrics are kept, in the order given.

    Raises:
        ValueError: If *points* mixes tasks, whose scores do not compare.
    """
    tasks = sorted({point.task for point in points})
    if len(tasks) > 1:
        raise ValueError(f"points of several tasks on one frontier: {', '.join(tasks)}; their scores do not compare")
    x_sign, y_sign = (1.0 if metric.better == "lower" else -1.0 for metric in (x, y))
    costs = [
        (x_sign * point.x, y_sign * point.y, point)
        for point in points
        if not (math.isnan(point.x) or math.isnan(point.y))
    ]
    kept: list[tuple[float, float, Point]] = []
    for candidate in sorted(costs, key=lambda cost: cost[:2]):
        # Sorted by x, then y: only a better y survives, or a tie with the one just kept.
        if not kept or candidate[1] < kept[-1][1] or candidate[:2] == kept[-1][:2]:
            kept.append(candidate)
    return [point for _, _, point in kept]
