"""Counts of an exposure, against the closed forms of their noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lensing_models.data.exposure import Exposure, RelativeNoise, SkyNoise, TwofoldNoise, expose
from lensing_models.data.law import Uniform

TWOFOLD = Exposure(exposure=2000.0, background_rms=0.01, shot_twice=True)
PLAIN = Exposure(exposure=300.0, sky_level=0.1)
KINDS = pytest.mark.parametrize("exposure", [TWOFOLD, PLAIN], ids=["twofold", "plain"])


def counts_of(image: np.ndarray, exposure: Exposure, seed: int = 0) -> np.ndarray:
    """Return the counts of one image (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return expose(torch.from_numpy(image)[None], [exposure], generator)[0].numpy()


@pytest.mark.parametrize("flux", [0.0, 0.005, 0.2])
def test_mean_counts_of_twofold_noise_are_those_of_a_cut_gaussian_rate(flux: float) -> None:
    spread = math.sqrt(flux / TWOFOLD.exposure + TWOFOLD.background_rms**2)
    rate = flux * stats.norm.cdf(flux / spread) + spread * stats.norm.pdf(flux / spread)

    counts = counts_of(np.full((300, 300), flux), TWOFOLD)

    assert counts.mean() == pytest.approx(rate * TWOFOLD.exposure, abs=5 * counts.std() / 300)


@pytest.mark.parametrize("flux", [0.0, 0.3])
def test_plain_counts_are_poisson_with_the_sky_in_them(flux: float) -> None:
    expected = stats.poisson((flux + PLAIN.sky_level) * PLAIN.exposure)

    counts = counts_of(np.full((300, 300), flux, np.float32), PLAIN)

    assert counts.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / 300)
    assert counts.var() == pytest.approx(expected.var(), rel=0.03)


@pytest.mark.parametrize("peak", [0.02, 0.5])
def test_relative_noise_looks_the_same_whatever_the_brightness(peak: float) -> None:
    exposure = RelativeNoise(corner_rms=0.003, pedestal=0.015).settle(peak, np.random.default_rng(0))
    image = np.zeros((300, 300))
    image[0, 0] = peak

    counts = counts_of(image, exposure)

    at_peak = peak * exposure.exposure
    assert counts[1:].std() / at_peak == pytest.approx(0.003, rel=0.02)
    assert counts[1:].mean() / at_peak == pytest.approx(0.015, rel=0.02)


@pytest.mark.parametrize(
    "noise",
    [
        TwofoldNoise(log10_exposure=Uniform(3.0, 3.5), background_rms=0.01),
        SkyNoise(exposure=Uniform(100.0, 300.0), sky_level=0.1),
        RelativeNoise(corner_rms=Uniform(0.002, 0.004), pedestal=Uniform(0.01, 0.02)),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_settings_come_from_the_images_own_stream(noise: TwofoldNoise | SkyNoise | RelativeNoise) -> None:
    settled = [noise.settle(0.5, np.random.default_rng(seed)) for seed in (1, 1, 2)]

    assert settled[0] == settled[1] != settled[2]


@KINDS
@settings(max_examples=20, deadline=None)
@given(image=hnp.arrays(np.float32, (5, 5), elements=st.floats(0, 10, width=32)), seed=st.integers(0, 2**32))
def test_counts_are_whole_not_negative_and_have_the_images_shape(
    exposure: Exposure, image: np.ndarray, seed: int
) -> None:
    counts = counts_of(image, exposure, seed)

    assert (counts.dtype, counts.shape) == (np.int32, image.shape)
    assert counts.min() >= 0


def test_counts_beyond_uint16_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit uint16"):
        counts_of(np.full((2, 2), 100.0), TWOFOLD)
