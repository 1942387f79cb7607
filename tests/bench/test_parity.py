from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.backends.base import LocalSession
from bench.parity import (
    TOLERANCE,
    compare,
    explain_disagreement,
    explain_failure,
    padded_batches,
    run_through,
    worse_of,
)
from bench.records import Parity
from tests.bench.conftest import make_case


class Means(LocalSession):
    """A session whose output for an image is its mean, twice; it reuses one buffer."""

    def __init__(self, batch_size: int) -> None:
        self.buffer = torch.empty(batch_size, 2)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        self.buffer[:] = images.mean(dim=(1, 2, 3))[:, None]
        return self.buffer

    def evidence(self) -> dict[str, str]:
        return {}


def test_the_error_is_relative_to_the_rms() -> None:
    reference = np.array([[3.0, -4.0]], dtype=np.float32)

    # rms of (3, -4) is sqrt(12.5); the largest difference is 0.5
    parity = compare(reference + np.array([[0.5, 0.0]], dtype=np.float32), reference, "bf16")

    assert parity.error == pytest.approx(0.5 / np.sqrt(12.5), rel=1e-6)


@pytest.mark.parametrize(("factor", "passed"), [(0.5, True), (2.0, False)])
def test_fp32_is_held_to_the_tolerance(factor: float, passed: bool) -> None:
    reference = np.ones((4, 3), dtype=np.float32)

    assert compare(reference + np.float32(factor * TOLERANCE), reference, "fp32").passed is passed


#: Outputs of a network that tells eight images apart, in two columns; their spread is 0.2.
MASSES = np.array([[-1.4 + 0.2 * sign, -3.0 - 0.2 * sign] for sign in (1, -1) * 4], dtype=np.float32)


@pytest.mark.parametrize(
    ("scored_by", "other_by", "agrees"),
    [
        (0.0, 0.019, True),
        (0.0, 0.021, False),  # a tenth of what the outputs differ by, not of what they are
        (0.0, -0.1, False),
        (0.05, -0.04, True),  # two that round differently, each as far from the reference
        (0.05, -0.06, False),
        (0.0, np.nan, False),
    ],
)
def test_a_further_session_must_agree_with_the_scored_one(scored_by: float, other_by: float, agrees: bool) -> None:
    said = explain_disagreement(MASSES + np.float32(other_by), MASSES + np.float32(scored_by), MASSES)

    assert (said == "") is agrees


def test_what_is_allowed_is_by_all_images_that_were_scored_and_not_by_those_compared_alone() -> None:
    scored = MASSES.copy()
    scored[7] += np.float32(0.1)

    assert explain_disagreement(MASSES[:2] + np.float32(0.15), scored, MASSES) == ""
    assert explain_disagreement(MASSES[:2] + np.float32(0.15), MASSES, MASSES) != ""


def test_a_network_that_answers_all_images_alike_may_differ_by_rounding() -> None:
    ones = np.ones((8, 3), dtype=np.float32)

    assert explain_disagreement(ones * np.float32(1 + 5e-5), ones, ones) == ""
    assert explain_disagreement(ones * np.float32(1.001), ones, ones) != ""


def test_a_single_image_may_round_as_others_do() -> None:
    one = MASSES[:1, :1]

    assert explain_disagreement(one * np.float32(1.005), one, one) == ""
    assert explain_disagreement(one * np.float32(1.2), one, one) != ""


def test_outputs_of_another_shape_are_no_agreement() -> None:
    assert "shape (4, 1)" in explain_disagreement(MASSES[:4, :1], MASSES, MASSES)


def test_two_sessions_of_a_worker_are_as_good_as_the_worse() -> None:
    scored = Parity(images=256, error=1e-6, tolerance=1e-4, passed=True)
    timed = Parity(images=16, error=2e-4, tolerance=1e-4, passed=False)

    both = worse_of(scored, timed)

    assert both == Parity(images=256, error=2e-4, tolerance=1e-4, passed=False)
    assert worse_of(scored, None) == scored


def test_reduced_precision_has_no_tolerance() -> None:
    reference = np.ones((4, 3), dtype=np.float32)

    parity = compare(reference * 2, reference, "bf16")

    assert (parity.passed, parity.tolerance) == (True, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_fails(precision: str, value: float) -> None:
    reference = np.ones((4, 3), dtype=np.float32)
    outputs = reference.copy()
    outputs[2, 1] = value

    parity = compare(outputs, reference, precision)

    assert not parity.passed
    assert explain_failure(outputs, parity) == "1 of 12 outputs are not finite"


def test_a_wrong_shape_fails() -> None:
    outputs = np.ones((4, 2), dtype=np.float32)

    parity = compare(outputs, np.ones((4, 3), dtype=np.float32), "bf16")

    assert not parity.passed
    assert "(4, 2)" in explain_failure(outputs, parity)


def test_a_ragged_batch_is_padded_with_its_last_image() -> None:
    images = torch.arange(5.0)[:, None, None, None]

    batches = [(batch.flatten().tolist(), count) for batch, count in padded_batches(images, 3)]

    assert batches == [([0, 1, 2], 3), ([3, 4, 4], 2)]


def test_outputs_are_kept_although_the_session_reuses_its_buffer() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2).contiguous()

    outputs = run_through(Means(2), images, make_case(batch_size=2))

    assert outputs[:, 0].tolist() == [0, 1, 2, 3, 4]


class Transposed(Means):
    """A session that returns its outputs the wrong way round."""

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        return super().infer(images).T


def test_a_session_that_returns_another_shape_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"outputs are \(2, 3\) torch.float32, not \(3, K\) float32"):
        run_through(Transposed(3), torch.zeros(3, 1, 2, 2), make_case(batch_size=3))
