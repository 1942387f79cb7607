from __future__ import annotations

import pytest

from bench.drift_facts import Drift, Estimate
from bench.margin import MARGINS, judge_drift, parse_margins, read_margins


def drift(**differences: tuple[float, float]) -> Drift:
    """Return a drift whose differences have these intervals."""
    return Drift(
        images=300,
        differences=tuple(
            Estimate(metric=name, point=(low + high) / 2, low=low, high=high)
            for name, (low, high) in differences.items()
        ),
    )


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.004, 0.001), "non-inferior"),
        ((-0.004, -0.001), "non-inferior"),  # surely less, and within the margin
        ((-0.006, 0.001), "cannot tell"),
        ((-0.020, -0.004), "cannot tell"),
        ((-0.020, -0.006), "worse"),
        ((0.010, 0.020), "non-inferior"),
        ((float("nan"), float("nan")), "cannot tell"),
    ],
)
def test_a_loss_of_accuracy_is_held_against_its_margin(interval: tuple[float, float], verdict: str) -> None:
    assert judge_drift(drift(accuracy=interval), {"accuracy": 0.005}) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"), [((-0.5, 0.01), "non-inferior"), ((0.01, 0.03), "cannot tell"), ((0.03, 0.05), "worse")]
)
def test_of_an_error_more_is_worse(interval: tuple[float, float], verdict: str) -> None:
    assert judge_drift(drift(mse=interval), MARGINS) == verdict


@pytest.mark.parametrize(
    ("area", "verdict"),
    [((-0.001, 0.0), "non-inferior"), ((-0.003, 0.0), "cannot tell"), ((-0.005, -0.003), "worse")],
)
def test_every_metric_must_be_within_and_one_beyond_is_enough(area: tuple[float, float], verdict: str) -> None:
    assert judge_drift(drift(accuracy=(0.0, 0.0), auc=area), MARGINS) == verdict


def test_worse_on_one_metric_is_worse_although_another_cannot_be_told() -> None:
    assert judge_drift(drift(accuracy=(-0.2, -0.1), auc=(float("nan"), float("nan"))), MARGINS) == "worse"


def test_what_was_not_compared_has_no_verdict() -> None:
    assert judge_drift(None, MARGINS) == ""


def test_margins_that_are_not_given_are_the_default_ones() -> None:
    assert parse_margins("") == {"accuracy": 0.005, "auc": 0.002, "mse": 0.02}
    assert parse_margins("mse=0.05, auc = 0") == {"accuracy": 0.005, "auc": 0.0, "mse": 0.05}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acuracy=0.01", "unknown metric 'acuracy'; known: accuracy, auc, mse. Did you mean 'accuracy'?"),
        ("0.01", "unknown metric '0.01'"),
        ("accuracy", "--margin accuracy: give a fraction from 0 to below 1, e.g. accuracy=0.005"),
        ("accuracy=0.5%", "give a fraction"),
        ("auc=-0.1", "give a fraction"),
        ("auc=1", "give a fraction"),
        ("auc=nan", "give a fraction"),
        ("auc=0.1,auc=0.2", "auc is there twice"),
    ],
)
def test_a_margin_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises((ValueError, LookupError)) as error:
        parse_margins(text)

    assert said in str(error.value)


def test_margins_of_a_run_are_read_and_of_an_older_one_the_default_ones() -> None:
    assert read_margins({"settings": {"margin": {"auc": 0.01}}}) == {**MARGINS, "auc": 0.01}
    assert read_margins({"settings": {"preset": "quick"}}) == read_margins({}) == MARGINS
