"""The interval of a difference of two shares that were counted on the same images."""

from __future__ import annotations

import dataclasses
import math

from scipy.optimize import brentq
from scipy.special import ndtri

from bench.drift_facts import Drift

#: Of the intervals, two-sided.
LEVEL = 0.95


def with_paired_interval(drift: Drift, *, agrees: bool) -> Drift:
    """Return *drift* with the interval of its accuracy's difference by the images lost and gained.

    Args:
        drift: As it is where there are no classes.
        agrees: Whether the outputs agree as those of two fp32 sessions must. Where they do and no image was put into
            another class, nothing is left to chance, and the interval is that of no difference.
    """
    if drift.lost is None or drift.gained is None:
        return drift
    low, high = (0.0, 0.0) if agrees and not drift.flips else paired_interval(drift.lost, drift.gained, drift.images)
    differences = tuple(
        dataclasses.replace(one, low=low, high=high) if one.metric == "accuracy" else one for one in drift.differences
    )
    return dataclasses.replace(drift, differences=differences)


def paired_interval(lost: int, gained: int, images: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of the share of images gained less that of those lost.

    The differences that a score test, its variance that of the counts most likely under the difference tested, does
    not reject (Tango 1998, Statistics in Medicine 17, equations 4 to 11). Where few images differ it keeps
    its level, which percentiles of resamples do not: images lost that nobody happened to see are in no resample.

    Args:
        lost: Images that only the reference has right.
        gained: Images that only the other one has right.
        images: All of them, 1 or more.
        level: Of the interval, two-sided.

    Raises:
        ValueError: If there are fewer images than differ, or none.
    """
    if not 0 < images >= lost + gained or min(lost, gained) < 0:
        raise ValueError(f"{lost} lost and {gained} gained of {images} images")
    point, bound = (gained - lost) / images, float(ndtri((1 + level) / 2))

    def beyond(difference: float, side: int) -> float:
        return side * _score(lost, gained, images, difference) - bound

    # The score is not defined at -1 and 1, and falls between them.
    edge = 1 - 1e-12
    low = -1.0 if beyond(-edge, 1) <= 0 else brentq(beyond, -edge, min(point, edge), args=(1,))
    high = 1.0 if beyond(edge, -1) <= 0 else brentq(beyond, max(point, -edge), edge, args=(-1,))
    return float(low), float(high)


def _score(lost: int, gained: int, images: int, difference: float) -> float:
    """Return the standardised distance of the counts from the *difference* of the shares gained and lost."""
    # The likeliest share lost, given the difference: the positive root of a q^2 + b q + c.
    a = 2 * images
    b = -(lost + gained) + (2 * images - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = images * (2 * share + difference * (1 - difference))
    distance = gained - lost - images * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
