from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bench.drift import MOST_LISTED, mcnemar, measure_drift, measure_quality
from bench.drift_facts import Drift, Estimate
from bench.margin import MARGINS, judge_drift
from lensing_models.metrics import log_softmax, score
from lensing_models.registry import find_task
from lensing_models.specs import TaskSpec

CLASSES = find_task("substructure")
GALAXIES = find_task("galaxy_morphology")
MASS = find_task("halo_mass")


def answers(labels: np.ndarray, count: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Return logits (N, count) of a network that is mostly right; rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(len(labels), count)) + 2.0 * np.eye(count)[labels]
    return logits.round(1).astype(np.float32)


def spoilt(outputs: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return *outputs* with the first *count* right ones made surely wrong."""
    changed = outputs.copy()
    right = np.flatnonzero(outputs.argmax(axis=1) == labels)[:count]
    changed[right, (labels[right] + 1) % outputs.shape[1]] = 20.0
    return changed


def by_metric(estimates: tuple[Estimate, ...]) -> dict[str, Estimate]:
    return {estimate.metric: estimate for estimate in estimates}


def resample_by_hand(labels: np.ndarray, resamples: int) -> list[np.ndarray]:
    """Return places drawn within each class, one class after the other, as many as it has."""
    rng = np.random.default_rng(7)
    parts = [np.flatnonzero(labels == index) for index in np.unique(labels)]
    return [np.concatenate([rng.choice(part, size=len(part)) for part in parts]) for _ in range(resamples)]


def area(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(sklearn.metrics.roc_auc_score(labels, np.exp(log_softmax(outputs)), multi_class="ovr"))


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (10, 2), (3, 3), (1, 9), (40, 25)])
def test_mcnemar_is_the_binomial_test_on_what_differs(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == pytest.approx(scipy.stats.binomtest(lost, lost + gained).pvalue, rel=1e-12)


def test_mcnemar_of_ten_lost_and_two_gained_by_hand() -> None:
    # 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096, rel=1e-12)


def test_without_a_difference_mcnemar_has_nothing_against_equality() -> None:
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("task", [CLASSES, GALAXIES], ids=lambda task: task.name)
def test_points_are_the_metrics_themselves(task: TaskSpec) -> None:
    labels = np.random.default_rng(1).integers(len(task.classes), size=200)
    outputs, reference = (answers(labels, len(task.classes), seed) for seed in (1, 2))

    quality = by_metric(measure_quality(task, outputs, labels, resamples=2))
    drift = by_metric(measure_drift(task, outputs, reference, labels, resamples=2).differences)

    ours, theirs = score(task, outputs, labels), score(task, reference, labels)
    assert set(quality) == set(drift) == {"auc", "accuracy"}
    for name in drift:
        assert quality[name].point == pytest.approx(ours[name], abs=1e-12)
        assert drift[name].point == pytest.approx(ours[name] - theirs[name], abs=1e-12)


def test_points_of_a_mass_are_its_error_and_the_error_over_the_references() -> None:
    labels = 10 ** np.random.default_rng(1).normal(-1.4, 0.2, size=200)
    reference, outputs = (
        np.log10(labels)[:, None] + np.random.default_rng(seed).normal(scale=0.1, size=(200, 1)) for seed in (2, 3)
    )

    (quality,) = measure_quality(MASS, outputs, labels, resamples=2)
    (difference,) = measure_drift(MASS, outputs, reference, labels, resamples=2).differences

    ours, theirs = (np.mean((10 ** each[:, 0] - labels) ** 2) for each in (outputs, reference))
    assert quality.point == pytest.approx(ours)
    assert difference.point == pytest.approx(ours / theirs - 1)


@pytest.mark.parametrize("count", [3, 5])
def test_area_of_each_resample_is_that_of_scikit_learn(count: int) -> None:
    from bench.drift import _area

    labels = np.random.default_rng(2).integers(count, size=90)
    outputs = answers(labels, count)
    places = resample_by_hand(labels, 20)

    areas = _area(outputs, labels)(np.array([np.bincount(drawn, minlength=90) for drawn in places], dtype=np.float64))

    assert areas == pytest.approx([area(outputs[drawn], labels[drawn]) for drawn in places], abs=1e-12)


def test_intervals_are_those_of_resampling_by_hand_with_scikit_learn() -> None:
    labels = np.random.default_rng(3).integers(3, size=150)
    reference = answers(labels, 3)
    outputs = reference + np.random.default_rng(4).normal(scale=0.7, size=reference.shape).astype(np.float32)

    found = by_metric(measure_drift(CLASSES, outputs, reference, labels, resamples=4000).differences)

    def right(answered: np.ndarray, drawn: np.ndarray) -> float:
        return float(sklearn.metrics.accuracy_score(labels[drawn], answered[drawn].argmax(axis=1)))

    by_hand = {
        "auc": [
            area(outputs[drawn], labels[drawn]) - area(reference[drawn], labels[drawn])
            for drawn in resample_by_hand(labels, 300)
        ],
        "accuracy": [right(outputs, drawn) - right(reference, drawn) for drawn in resample_by_hand(labels, 300)],
    }
    for name, values in by_hand.items():
        # The bounds of 300 resamples scatter by 0.15 of the standard deviation.
        tolerance = 0.5 * float(np.std(values))
        assert (found[name].low, found[name].high) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=tolerance)


def test_the_interval_of_an_accuracy_is_that_of_its_standard_error() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    labels[500:] = 1
    outputs = np.zeros((1000, 3), dtype=np.float32)
    outputs[np.arange(1000), labels] = 1.0
    outputs[:1000:10] = (0.0, 0.0, 1.0)  # one in ten of either class is wrong

    found = by_metric(measure_quality(CLASSES, outputs, labels, resamples=4000))["accuracy"]

    half = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert (found.low, found.high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.1 * half)


def test_flips_are_counted_and_listed_by_what_they_cost() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    reference = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 1]]  # the first two and the last are right
    outputs = np.eye(3, dtype=np.float32)[[1, 1, 2, 2, 0]]

    drift = measure_drift(CLASSES, outputs, reference, labels, resamples=10)

    assert (drift.flips, drift.lost, drift.gained) == (4, 2, 1)  # one goes from wrong to wrong
    assert drift.flipped == (0, 2, 3, 4)
    assert drift.mcnemar_p == 1.0


def test_only_the_first_flips_are_listed() -> None:
    labels = np.zeros(500, dtype=np.int64)
    reference = np.tile(np.float32([1, 0, 0]), (500, 1))

    drift = measure_drift(CLASSES, reference[:, ::-1], reference, labels, resamples=10)

    assert drift.flips == 500
    assert drift.flipped == tuple(range(MOST_LISTED))


def test_a_mass_has_no_flips() -> None:
    labels = np.array([0.01, 0.02, 0.03])

    drift = measure_drift(MASS, np.log10(labels)[:, None] + 0.1, np.log10(labels)[:, None] - 0.1, labels, resamples=10)

    assert (drift.flips, drift.mcnemar_p, drift.flipped) == (None, None, ())


def test_a_seed_repeats_its_intervals() -> None:
    labels = np.random.default_rng(5).integers(3, size=60)
    outputs, reference = answers(labels, 3, 1), answers(labels, 3, 2)

    def intervals(seed: int) -> tuple[Estimate, ...]:
        return measure_drift(CLASSES, outputs, reference, labels, resamples=50, seed=seed).differences

    assert intervals(1) == intervals(1)
    assert intervals(1) != intervals(2)


def test_a_class_of_one_image_is_in_every_resample() -> None:
    labels = np.array([0] * 30 + [1] * 30 + [2])

    found = by_metric(measure_quality(CLASSES, answers(labels, 3), labels, resamples=200))

    assert not math.isnan(found["auc"].low)


def test_area_without_one_of_the_classes_is_not_defined_and_cannot_be_told() -> None:
    labels = np.array([0, 1] * 20)
    outputs = answers(labels, 3)

    drift = measure_drift(CLASSES, outputs, outputs, labels, resamples=10)

    assert math.isnan(by_metric(drift.differences)["auc"].low)
    assert judge_drift(drift, MARGINS) == "cannot tell"


def test_outputs_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        measure_drift(CLASSES, np.zeros((4, 3)), np.zeros((5, 3)), np.zeros(4, dtype=np.int64))


def test_an_identical_session_is_non_inferior_on_few_images_too() -> None:
    labels = np.random.default_rng(6).integers(3, size=300)
    outputs = answers(labels, 3)

    drift = measure_drift(CLASSES, outputs, outputs.copy(), labels)

    assert {(one.point, one.low, one.high) for one in drift.differences} == {(0.0, 0.0, 0.0)}
    assert judge_drift(drift, {"accuracy": 0.0, "auc": 0.0}) == "non-inferior"


def test_a_tenth_of_the_answers_spoilt_is_worse() -> None:
    labels = np.random.default_rng(6).integers(3, size=300)
    outputs = answers(labels, 3)

    drift = measure_drift(CLASSES, spoilt(outputs, labels, 30), outputs, labels)

    assert (drift.lost, drift.gained) == (30, 0)
    assert judge_drift(drift, MARGINS) == "worse"


def test_better_by_as_much_is_non_inferior() -> None:
    labels = np.random.default_rng(6).integers(3, size=300)
    outputs = answers(labels, 3)

    assert judge_drift(measure_drift(CLASSES, outputs, spoilt(outputs, labels, 30), labels), MARGINS) == "non-inferior"


def test_a_loss_within_the_margin_is_told_by_many_images_and_not_by_few() -> None:
    def verdict(images: int) -> str:
        labels = np.arange(images) % 3
        outputs = 8 * np.eye(3, dtype=np.float32)[labels]
        drift = measure_drift(CLASSES, spoilt(outputs, labels, images // 300), outputs, labels)
        return judge_drift(drift, {"accuracy": 0.005, "auc": 0.02})

    assert verdict(300) == "cannot tell"  # one of 300 lost: the interval reaches beyond 0.5 %
    assert verdict(9000) == "non-inferior"


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "non-inferior"), (1.005, "non-inferior"), (1.1, "worse")])
def test_a_mass_is_judged_by_its_relative_error(scale: float, verdict: str) -> None:
    rng = np.random.default_rng(8)
    labels = 10 ** rng.normal(-1.4, 0.2, size=300)
    residuals = rng.normal(scale=0.005, size=300)
    reference, outputs = (np.log10(labels + factor * residuals)[:, None] for factor in (1.0, scale))

    # Each residual grows by *scale*, so the error does by its square, on every resample alike.
    assert judge_drift(measure_drift(MASS, outputs, reference, labels), MARGINS) == verdict


def test_a_mass_beyond_all_bounds_is_worse() -> None:
    labels = np.full(50, 0.04)
    reference = np.full((50, 1), -1.3)

    assert judge_drift(measure_drift(MASS, np.full((50, 1), 400.0), reference, labels), MARGINS) == "worse"


def test_intervals_of_drift_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(9)
    held = 0
    for seed in range(200):
        labels = np.repeat([0, 1, 2], 100)
        # Either is right on 80 %, of images of its own choice: the true difference is 0.
        classes = np.where(rng.random((2, 300)) < 0.8, labels, (labels + 1) % 3)
        outputs, reference = np.eye(3, dtype=np.float32)[classes]
        found = by_metric(measure_drift(CLASSES, outputs, reference, labels, resamples=300, seed=seed).differences)
        held += found["accuracy"].low <= 0 <= found["accuracy"].high

    # A binomial with probability 0.95 is below 180 of 200 once in a thousand times.
    assert held >= 180


def test_a_drift_without_metrics_cannot_be_told() -> None:
    assert judge_drift(Drift(images=3, differences=()), MARGINS) == "cannot tell"
