"""What a session's answers are worth beside the reference's on the same test images, with intervals.

One resample is a vector of weights, how often each image was drawn; a metric of many resamples is
then a few array operations, where `lensing_models.evaluate` scores each anew. Images are drawn
within their class, as often as it has images: no resample lacks a class, and the numbers of images
of each class are taken as given, not as chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from bench.drift_facts import Drift, Estimate
from bench.margin import MARGINS, RELATIVE
from bench.paired import LEVEL, with_paired_interval
from bench.parity import compare
from lensing_models.metrics import log_softmax, residual
from lensing_models.specs import FloatArray, LabelArray, TaskSpec

RESAMPLES, SEED = 1000, 0
#: Resamples that are in memory at a time.
CHUNK = 50
#: Flips that a record lists; all can be found in the run's ``outputs``.
MOST_LISTED = 100
#: Larger residuals count as this one: their squares and sums stay finite.
MOST_RESIDUAL = 1e100

Values = NDArray[np.float64]
#: From weights (R, N), one resample a row, to its value on each of them (R,).
Statistic = Callable[[Values], Values]


def measure_quality(
    task: TaskSpec, outputs: FloatArray, labels: LabelArray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Estimate, ...]:
    """Return each of the task's metrics that has a margin, with its percentile interval.

    Args:
        task: Names the metrics.
        outputs: (N, K) finite, as for `lensing_models.metrics.score`.
        labels: (N,).
        resamples: Draws of N images with replacement, the same for every metric.
        seed: Of the draws.
    """
    return _estimate(_statistics(task, outputs, labels), _strata(task, labels), resamples, seed)


def measure_drift(
    task: TaskSpec,
    outputs: FloatArray,
    reference: FloatArray,
    labels: LabelArray,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Drift:
    """Return how *outputs* (N, K) differ from *reference* (N, K), image by image.

    Each resample draws images, and both answer for the same ones: what makes an image hard for both
    cancels. The interval of an accuracy is by the images lost and gained (`bench.paired`), for few differ.

    Args:
        task: Names the metrics.
        outputs: Finite.
        reference: In the same order.
        labels: (N,).
        resamples: As for `measure_quality`.
        seed: As for `measure_quality`.

    Raises:
        ValueError: If the two are not of the same images and classes.
    """
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs {outputs.shape} and {reference.shape} are not of the same images and classes")
    ours, theirs = (_statistics(task, answers, labels) for answers in (outputs, reference))
    differences = {name: partial(_difference, name, ours[name], theirs[name]) for name in ours}
    estimates = _estimate(differences, _strata(task, labels), resamples, seed)
    if task.kind != "classification":
        return Drift(images=len(labels), differences=estimates)
    classes, before = outputs.argmax(axis=1), reference.argmax(axis=1)
    flipped = np.flatnonzero(classes != before)
    lost = int(np.count_nonzero(before[flipped] == labels[flipped]))
    gained = int(np.count_nonzero(classes[flipped] == labels[flipped]))
    drift = Drift(
        images=len(labels),
        differences=estimates,
        flips=len(flipped),
        lost=lost,
        gained=gained,
        flipped=tuple(flipped[:MOST_LISTED].tolist()),
        mcnemar_p=mcnemar(lost, gained),
    )
    return with_paired_interval(drift, agrees=compare(outputs, reference, "fp32").passed)


def mcnemar(lost: int, gained: int) -> float:
    """Return the exact two-sided p of the numbers of images that only one of two networks has right.

    Under the hypothesis that either is as likely, the smaller is binomial with probability one half
    (McNemar 1947; the exact form: Fagerland, Lydersen and Laake 2013, equation 2).
    """
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def _difference(name: str, ours: Statistic, theirs: Statistic, weights: Values) -> Values:
    """Return the difference of the metric *name* on each resample, relative where its margin is."""
    first, second = ours(weights), theirs(weights)
    return first / second - 1 if name in RELATIVE else first - second


def _statistics(task: TaskSpec, outputs: FloatArray, labels: LabelArray) -> dict[str, Statistic]:
    """Return each of the task's metrics that has a margin, as a function of weights."""
    makers = {"accuracy": _accuracy, "auc": _area, "mse": _squared_error}
    return {name: makers[name](outputs, labels) for name in task.metrics if name in MARGINS}


def _accuracy(outputs: FloatArray, labels: LabelArray) -> Statistic:
    right = (outputs.argmax(axis=1) == labels).astype(np.float64)
    return lambda weights: weights @ right / weights.sum(axis=1)


def _squared_error(outputs: FloatArray, labels: LabelArray) -> Statistic:
    squares = np.clip(residual(outputs, labels), -MOST_RESIDUAL, MOST_RESIDUAL) ** 2
    return lambda weights: weights @ squares / weights.sum(axis=1)


def _area(outputs: FloatArray, labels: LabelArray) -> Statistic:
    """Return the area under the ROC curve, one class against the rest, averaged over classes."""
    probabilities = np.exp(log_softmax(outputs))
    areas = [_area_of(probabilities[:, index], labels == index) for index in range(outputs.shape[1])]
    return lambda weights: np.asarray(np.mean([area(weights) for area in areas], axis=0))


def _area_of(scores: Values, is_member: NDArray[np.bool_]) -> Statistic:
    """Return the share of pairs of a member and another image in which the member scores higher.

    A tie counts one half, as in `lensing_models.metrics.auc_one_vs_rest`.
    """
    order = np.argsort(scores, kind="stable")
    ranked, members = scores[order], is_member[order]
    begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))  # of each run of ties

    def area(weights: Values) -> Values:
        sorted_weights = weights[:, order]
        inside = np.add.reduceat(sorted_weights * members, begins, axis=1)
        outside = np.add.reduceat(sorted_weights * ~members, begins, axis=1)
        below = np.cumsum(outside, axis=1) - outside / 2
        pairs = inside.sum(axis=1) * outside.sum(axis=1)
        # Without a member or another image there is no pair, and the area is not defined.
        undefined = np.full(len(pairs), np.nan)
        return np.asarray(np.divide((inside * below).sum(axis=1), pairs, out=undefined, where=pairs > 0))

    return area


def _strata(task: TaskSpec, labels: LabelArray) -> list[NDArray[np.int64]]:
    """Return the places of the images of each class; of all images where there are no classes."""
    if task.kind != "classification":
        return [np.arange(len(labels))]
    return [np.flatnonzero(labels == index) for index in np.unique(labels)]


def _draw(strata: list[NDArray[np.int64]], resamples: int, seed: int) -> Iterator[Values]:
    """Yield weights (R, N) of *resamples* in all, R of them at a time."""
    rng = np.random.default_rng(seed)
    images = sum(map(len, strata))
    for begin in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - begin)
        drawn = np.concatenate([part[rng.integers(len(part), size=(count, len(part)))] for part in strata], axis=1)
        rows = images * np.arange(count)[:, None]
        yield np.bincount((rows + drawn).ravel(), minlength=count * images).reshape(count, images).astype(np.float64)


def _estimate(
    statistics: Mapping[str, Statistic], strata: list[NDArray[np.int64]], resamples: int, seed: int
) -> tuple[Estimate, ...]:
    """Return the value of each of *statistics* on all images, with its percentile interval over resamples."""
    values: dict[str, list[Values]] = {name: [] for name in statistics}
    for weights in _draw(strata, resamples, seed):
        for name, statistic in statistics.items():
            values[name].append(statistic(weights))
    all_once = np.ones((1, sum(map(len, strata))))
    tail = (1 - LEVEL) / 2
    estimates = []
    for name, statistic in statistics.items():
        low, high = np.quantile(np.concatenate(values[name]), (tail, 1 - tail))
        estimates.append(Estimate(metric=name, point=float(statistic(all_once)[0]), low=float(low), high=float(high)))
    return tuple(estimates)
