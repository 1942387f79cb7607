import math

import numpy as np
import pytest
import sklearn.metrics

from lensing_models.metrics import known_metrics, score
from lensing_models.registry import find_task
from lensing_models.tasks import known_tasks

CLASSES = find_task("substructure")
MASS = find_task("halo_mass")


@pytest.fixture
def logits() -> np.ndarray:
    # Rows that repeat, so that there are ties.
    rng = np.random.default_rng(1)
    return rng.normal(size=(25, 3)).astype(np.float32)[rng.integers(25, size=60)]


@pytest.fixture
def classes() -> np.ndarray:
    return np.random.default_rng(2).integers(3, size=60)


@pytest.fixture
def fractions() -> np.ndarray:
    return 10 ** np.random.default_rng(3).normal(-1.4, 0.2, size=60)


@pytest.fixture
def predicted_log10(fractions: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(4).normal(0.02, 0.1, size=60)
    return (np.log10(fractions) + noise).astype(np.float32)[:, None]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def test_auc_equals_scikit_learn(logits: np.ndarray, classes: np.ndarray) -> None:
    expected = sklearn.metrics.roc_auc_score(classes, softmax(logits), multi_class="ovr", average="macro")

    assert score(CLASSES, logits, classes)["auc"] == pytest.approx(expected, abs=1e-12)


def test_auc_equals_counting_every_pair(logits: np.ndarray, classes: np.ndarray) -> None:
    probabilities = softmax(logits)
    areas = []
    for index in range(3):
        members, others = probabilities[classes == index, index], probabilities[classes != index, index]
        wins = [(member > other) + 0.5 * (member == other) for member in members for other in others]
        areas.append(np.mean(wins))

    assert score(CLASSES, logits, classes)["auc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_auc_is_one_for_a_perfect_order() -> None:
    assert score(CLASSES, np.eye(3) * 5, np.arange(3))["auc"] == 1.0


def test_auc_without_a_class_is_nan(logits: np.ndarray) -> None:
    assert math.isnan(score(CLASSES, logits, np.zeros(60, dtype=np.int64))["auc"])


def test_macro_recall_equals_scikit_learn(logits: np.ndarray, classes: np.ndarray) -> None:
    expected = sklearn.metrics.balanced_accuracy_score(classes, logits.argmax(axis=1))

    assert known_metrics()["macro_recall"].compute(logits, classes) == pytest.approx(expected, abs=1e-12)


def test_macro_recall_is_not_defined_without_a_class(logits: np.ndarray) -> None:
    assert math.isnan(known_metrics()["macro_recall"].compute(logits, np.zeros(60, np.int64)))


def test_accuracy_equals_scikit_learn(logits: np.ndarray, classes: np.ndarray) -> None:
    expected = sklearn.metrics.accuracy_score(classes, logits.argmax(axis=1))

    assert score(CLASSES, logits, classes)["accuracy"] == pytest.approx(expected)


def test_log_loss_equals_scikit_learn(logits: np.ndarray, classes: np.ndarray) -> None:
    expected = sklearn.metrics.log_loss(classes, softmax(logits))

    assert score(CLASSES, logits, classes)["log_loss"] == pytest.approx(expected, rel=1e-12)


def test_log_loss_of_equal_logits_is_log_of_the_number_of_classes(classes: np.ndarray) -> None:
    assert score(CLASSES, np.zeros((60, 3)), classes)["log_loss"] == pytest.approx(math.log(3))


def test_log_loss_of_huge_logits_stays_finite() -> None:
    assert score(CLASSES, np.array([[0.0, 1e4, 0.0]]), np.array([0]))["log_loss"] == pytest.approx(1e4)


def test_mse_equals_scikit_learn(predicted_log10: np.ndarray, fractions: np.ndarray) -> None:
    predicted = 10 ** predicted_log10[:, 0].astype(np.float64)
    expected = sklearn.metrics.mean_squared_error(fractions, predicted)

    assert score(MASS, predicted_log10, fractions)["mse"] == pytest.approx(expected, rel=1e-12)


def test_r2_equals_scikit_learn(predicted_log10: np.ndarray, fractions: np.ndarray) -> None:
    predicted = 10 ** predicted_log10[:, 0].astype(np.float64)
    expected = sklearn.metrics.r2_score(fractions, predicted)

    assert score(MASS, predicted_log10, fractions)["r2"] == pytest.approx(expected, rel=1e-12)


def test_mse_log10_of_a_constant_offset_is_its_square(fractions: np.ndarray) -> None:
    outputs = np.log10(fractions)[:, None] + 0.3

    assert score(MASS, outputs, fractions)["mse_log10"] == pytest.approx(0.09)


def test_bias_and_scatter_of_a_constant_offset(fractions: np.ndarray) -> None:
    values = score(MASS, np.log10(fractions + 0.01)[:, None], fractions)

    assert values["bias"] == pytest.approx(0.01)
    assert values["scatter"] == pytest.approx(0.0, abs=1e-12)


def test_mse_is_bias_squared_plus_scatter_squared(predicted_log10: np.ndarray, fractions: np.ndarray) -> None:
    values = score(MASS, predicted_log10, fractions)

    assert values["mse"] == pytest.approx(values["bias"] ** 2 + values["scatter"] ** 2)


def test_r2_of_equal_labels_is_nan() -> None:
    assert math.isnan(score(MASS, np.zeros((4, 1)), np.full(4, 0.05))["r2"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_is_refused(bad: float, logits: np.ndarray, classes: np.ndarray) -> None:
    logits[7, 1] = bad

    with pytest.raises(ValueError, match=r"'substructure': outputs are not finite for 1 of 60"):
        score(CLASSES, logits, classes)


@pytest.mark.parametrize("shape", [(60, 2), (59, 3), (60,)])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...], classes: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not \(60, 3\)"):
        score(CLASSES, np.zeros(shape), classes)


@pytest.mark.parametrize("task", known_tasks().values(), ids=lambda task: task.name)
def test_every_metric_of_a_task_is_known_and_applies(task) -> None:
    assert all(task.kind in known_metrics()[name].applies_to for name in task.metrics)
