"""What a session's answers are worth beside eager fp32's, as typed facts. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A quality metric, or a difference of one, with its 95 % interval.

    It is over resampled test images, but that of a difference of accuracies by the images lost and gained.

    Attributes:
        metric: Name of the metric.
        point: Its value on all images.
        low: Lower bound; NaN where the metric is not defined on these images.
        high: Upper bound.
    """

    metric: str
    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How the answers of a scored session differ from those of the reference of `Parity` on the same images.

    Attributes:
        images: Test images compared: the whole split.
        differences: Of each judged metric, the session's less the reference's, in the metric's unit;
            of an MSE, in units of the reference's.
        flips: Images that are put into another class; None where there are no classes.
        lost: Those of them that only the reference has right.
        gained: Those that only the session has right.
        flipped: Places of the first flips in the test split.
        mcnemar_p: Probability of images lost and gained as unequal as these, or more so, if either were
            as likely (McNemar, exact, two-sided).
    """

    images: int
    differences: tuple[Estimate, ...]
    flips: int | None = None
    lost: int | None = None
    gained: int | None = None
    flipped: tuple[int, ...] = ()
    mcnemar_p: float | None = None
