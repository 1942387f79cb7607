"""What the pictures of a network's answers show, against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from lensing_models.picture import confusion_matrix, roc_curve, save_answers
from lensing_models.registry import find_task

RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=200)
LOGITS = RNG.normal(size=(200, 3)) + 2 * np.eye(3)[LABELS]


def test_the_confusion_matrix_is_scikit_learns() -> None:
    np.testing.assert_array_equal(
        confusion_matrix(LOGITS, LABELS), oracle.confusion_matrix(LABELS, LOGITS.argmax(axis=1))
    )


def test_a_class_that_is_never_answered_has_its_column() -> None:
    assert confusion_matrix(np.array([[1.0, 0.0, 0.0]]), np.array([2])).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("decimals", [0, 6], ids=["ties", "no ties"])
def test_the_roc_curve_is_scikit_learns(decimals: int) -> None:
    probability = LOGITS[:, 1].round(decimals)

    false_rate, true_rate = roc_curve(probability, LABELS == 1)

    expected_false, expected_true, _ = oracle.roc_curve(LABELS == 1, probability, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected_false)
    np.testing.assert_allclose(true_rate, expected_true)


@pytest.mark.parametrize("task", ["substructure", "halo_mass"])
def test_a_picture_is_drawn_for_each_kind_of_task(task: str, tmp_path: Path) -> None:
    regression = task == "halo_mass"
    outputs = np.log10(RNG.uniform(0.01, 0.1, (50, 1))) if regression else LOGITS
    labels = RNG.uniform(0.01, 0.1, 50) if regression else LABELS

    save_answers(find_task(task), outputs, labels, tmp_path / "answers.png", "a title")

    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")
