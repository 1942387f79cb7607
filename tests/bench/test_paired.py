from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from bench.drift_facts import Drift, Estimate
from bench.paired import paired_interval, with_paired_interval


def drift(lost: int | None, gained: int | None, images: int, flips: int | None = None) -> Drift:
    area = Estimate(metric="auc", point=0.0, low=-0.1, high=0.1)
    accuracy = Estimate(metric="accuracy", point=0.0, low=0.0, high=0.0)
    flipped = (lost or 0) + (gained or 0) if flips is None else flips
    return Drift(images=images, differences=(area, accuracy), lost=lost, gained=gained, flips=flipped)


@pytest.mark.parametrize(
    ("counts", "level", "published"),
    [
        # Airway reactivity before and after a transplantation (Fagerland, Lydersen and Laake 2014, table 7).
        ((7, 1, 21), 0.95, (-0.517, -0.026)),
        # PropCIs::scoreci.mp of R, whose first count is ours of images lost.
        ((25, 28, 618), 0.90, (-0.0148, 0.0247)),
    ],
)
def test_intervals_are_those_that_were_published(
    counts: tuple[int, int, int], level: float, published: tuple[float, float]
) -> None:
    assert paired_interval(*counts, level) == pytest.approx(published, abs=5.5e-4 if level == 0.95 else 5.5e-5)


def test_where_nothing_differs_the_interval_ends_where_it_is_rejected_exactly() -> None:
    # With no image lost or gained the score is -n d / sqrt(n d (1 + d ...)): z^2 / (n + z^2).
    half = 1.959964**2 / (300 + 1.959964**2)

    assert paired_interval(0, 0, 300) == pytest.approx((-half, half), abs=1e-9)


@pytest.mark.parametrize("counts", [(3, 5, 100), (0, 40, 100), (100, 0, 100), (0, 1, 1), (50, 50, 100)])
def test_exchanging_the_two_mirrors_the_interval_about_the_point(counts: tuple[int, int, int]) -> None:
    lost, gained, images = counts

    low, high = paired_interval(lost, gained, images)

    assert paired_interval(gained, lost, images) == pytest.approx((-high, -low), abs=1e-9)
    assert -1 <= low <= (gained - lost) / images <= high <= 1


@pytest.mark.parametrize("counts", [(1, 1, 1), (0, 0, 0), (-1, 0, 10)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="lost and"):
        paired_interval(*counts)


@pytest.mark.parametrize("images", [300, 1000, 3000])
@pytest.mark.parametrize("gained_rate", [0.0, 0.002])
def test_a_loss_of_just_the_margin_is_rarely_taken_for_less(images: int, gained_rate: float) -> None:
    margin = 0.005
    most = 60
    lost, gained = np.meshgrid(np.arange(most), np.arange(most), indexing="ij")
    # Of each pair of counts its probability, as if images were lost and gained independently: both are rare.
    probability = binom.pmf(lost, images, margin + gained_rate) * binom.pmf(gained, images, gained_rate)

    likely = [(int(b), int(c)) for b, c in zip(lost.ravel(), gained.ravel(), strict=True) if b + c <= images]
    passed = sum(
        float(probability[b, c])
        for b, c in likely
        if probability[b, c] > 1e-7 and -paired_interval(b, c, images)[0] <= margin
    )

    # Percentiles of resamples pass 22 % with 300 images, where none was lost.
    assert passed <= 0.03


def test_accuracy_has_the_interval_of_its_counts_and_nothing_else_does() -> None:
    area, accuracy = with_paired_interval(drift(11, 4, 3000), agrees=False).differences

    assert (area.low, area.high) == (-0.1, 0.1)
    assert (accuracy.low, accuracy.high) == paired_interval(11, 4, 3000)


def test_outputs_that_agree_and_flip_nothing_leave_nothing_to_chance() -> None:
    agreeing, rounded = (
        with_paired_interval(drift(0, 0, 300), agrees=agrees).differences[1] for agrees in (True, False)
    )

    assert (agreeing.low, agreeing.high) == (0.0, 0.0)
    assert rounded.low < -0.005  # none of 300 lost is no proof of less than 0.5 %


def test_a_flip_from_wrong_to_wrong_leaves_something_to_chance() -> None:
    one = with_paired_interval(drift(0, 0, 300, flips=1), agrees=True).differences[1]

    assert one.low < 0 < one.high


def test_where_there_are_no_classes_nothing_changes() -> None:
    mass = drift(None, None, 300)

    assert with_paired_interval(mass, agrees=False) == mass
