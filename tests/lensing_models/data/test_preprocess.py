"""The one scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import minmax_scale

from lensing_models.data.preprocess import scale_to_unit

BATCHES = hnp.arrays(np.float32, (3, 2, 4, 4), elements=st.integers(0, 60000).map(float))


@settings(max_examples=30, deadline=None)
@given(counts=BATCHES)
def test_scaling_is_scikit_learns_for_each_image(counts: np.ndarray) -> None:
    expected = minmax_scale(counts.reshape(3, -1).astype(np.float64), axis=1).reshape(counts.shape)

    np.testing.assert_allclose(scale_to_unit(counts).numpy(), expected, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(counts=BATCHES)
def test_an_image_scales_the_same_alone_and_in_a_batch(counts: np.ndarray) -> None:
    alone = torch.cat([scale_to_unit(counts[row : row + 1]) for row in range(3)])

    assert torch.equal(scale_to_unit(counts), alone)


def test_a_constant_image_becomes_zeros() -> None:
    assert not scale_to_unit(np.full((1, 1, 3, 3), 7.0)).any()


def test_the_result_is_contiguous_float32() -> None:
    scaled = scale_to_unit(np.arange(24, dtype=np.uint16).reshape(2, 3, 2, 2).transpose(0, 1, 3, 2))

    assert scaled.dtype == torch.float32
    assert scaled.is_contiguous()


def test_the_counts_are_left_as_they_are() -> None:
    counts = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)

    scale_to_unit(counts)

    assert counts.max() == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_its_image(value: float) -> None:
    counts = np.zeros((3, 1, 2, 2), np.float32)
    counts[1, 0, 1, 1] = value

    with pytest.raises(ValueError, match="image 1 of 3"):
        scale_to_unit(counts)


def test_a_single_image_without_its_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        scale_to_unit(np.zeros((1, 2, 2)))
