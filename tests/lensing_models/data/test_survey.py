"""The first look: which type holds the values, and which images are the same."""

from __future__ import annotations

import numpy as np
import pytest

from lensing_models.data.survey import DTYPES, fitting_dtypes, hash_pixels
from tests.lensing_models.data.packing import counts


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([0, 255], np.uint8), "uint8"),
        (np.array([0, 65535], np.int64), "uint16"),
        (np.array([0.0, 65535.0]), "uint16"),
        (np.array([0, 65536], np.int64), "float32"),
        (np.array([-1, 5], np.int64), "float16"),
        (np.array([0.5, 2.25]), "float16"),
        (np.array([0.1, 0.3]), "float32"),
        (np.array([0.0, 1e6 + 0.5], np.float32), "float32"),
    ],
    ids=str,
)
def test_values_take_the_smallest_type_that_holds_them(pixels: np.ndarray, expected: str) -> None:
    fitting = fitting_dtypes(pixels)

    assert next(dtype for dtype in DTYPES if dtype in fitting) == expected
    np.testing.assert_array_equal(pixels.astype(expected), pixels.astype(np.float32))


@pytest.mark.parametrize("dtype", ["<i8", ">i2", "<u2", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_same_image_has_the_same_digest_in_every_type(dtype: str, order: str) -> None:
    image = counts(1)

    again = image.astype(dtype).copy(order=order)  # type: ignore[call-overload]  # a parameter

    assert hash_pixels(again) == hash_pixels(image)


def test_one_other_pixel_gives_another_digest() -> None:
    image = counts(1)
    other = image.copy()
    other[3, 3] += 1

    assert hash_pixels(other) != hash_pixels(image)


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    assert hash_pixels(counts(1).reshape(4, 9)) != hash_pixels(counts(1))
