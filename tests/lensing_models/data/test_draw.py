"""What is drawn, against the closed forms of its distributions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lensing_models.data.draw import draw_lens, expose, image_stream
from lensing_models.data.sky import SKIES, Sky

MODEL_I = SKIES["model_i"]


def mass_moment(sky: Sky, order: int) -> float:
    """Return the mean of mass^order [Msun^order] under dN/dm ~ m^slope."""
    low, high = sky.subhalo_mass
    power = sky.subhalo_slope + 1
    norm = (high**power - low**power) / power
    return (high ** (power + order) - low ** (power + order)) / (power + order) / norm


def test_mass_fractions_have_the_mean_of_the_mass_function() -> None:
    rng, number = np.random.default_rng(1), 4000
    expected = MODEL_I.subhalo_count * mass_moment(MODEL_I, 1) / MODEL_I.halo_mass

    fractions = [draw_lens(MODEL_I, "sphere", rng).mass_fraction for _ in range(number)]

    # The variance of a compound Poisson sum is count x <m^2>; five standard errors, 2 % of the mean.
    error = math.sqrt(MODEL_I.subhalo_count * mass_moment(MODEL_I, 2) / number) / MODEL_I.halo_mass
    assert np.mean(fractions) == pytest.approx(expected, abs=5 * error)


def test_subhalo_masses_follow_their_power_law() -> None:
    rng = np.random.default_rng(2)
    lenses = [draw_lens(MODEL_I, "sphere", rng) for _ in range(200)]
    masses = np.concatenate([(lens.subhalos[:, 2] / MODEL_I.theta_E_of(1.0)) ** 2 for lens in lenses])
    power = MODEL_I.subhalo_slope + 1
    low, high = (edge**power for edge in MODEL_I.subhalo_mass)

    result = stats.kstest(masses, lambda mass: (mass**power - low) / (high - low))

    assert result.pvalue > 1e-3


def test_the_mass_fraction_is_that_of_the_subhalos_drawn() -> None:
    lens = draw_lens(MODEL_I, "sphere", np.random.default_rng(3))

    total = (lens.subhalos[:, 2] ** 2).sum() / lens.theta_E**2

    assert lens.mass_fraction == pytest.approx(total, rel=1e-12)


def test_a_sphere_has_at_least_one_subhalo() -> None:
    rare = dataclasses.replace(MODEL_I, subhalo_count=0.1)
    rng = np.random.default_rng(4)

    assert min(draw_lens(rare, "sphere", rng).mass_fraction for _ in range(50)) > 0


def test_a_plain_lens_has_no_substructure() -> None:
    lens = draw_lens(MODEL_I, "no", np.random.default_rng(5))

    assert (lens.mass_fraction, len(lens.subhalos), lens.vortex_length) == (0.0, 0, 0.0)


@pytest.mark.parametrize(("log10_axion_mass", "half_length"), [(-24.0, 3.0), (-22.0, 0.03)])
def test_a_lighter_axion_makes_a_longer_vortex(log10_axion_mass: float, half_length: float) -> None:
    sky = dataclasses.replace(MODEL_I, log10_axion_mass=log10_axion_mass)

    lens = draw_lens(sky, "vort", np.random.default_rng(6))

    assert lens.vortex_length / 2 == pytest.approx(half_length)


def test_classes_share_what_is_not_substructure() -> None:
    lenses = [draw_lens(MODEL_I, name, image_stream(0, "test", 7)) for name in ("no", "sphere", "vort")]

    assert len({(lens.source_x, lens.source_y, lens.exposure) for lens in lenses}) == 1


def test_streams_differ_by_seed_split_and_index() -> None:
    streams = [image_stream(0, "train", 1), image_stream(1, "train", 1), image_stream(0, "test", 1)]
    streams.append(image_stream(0, "train", 11))

    assert len({stream.random() for stream in streams}) == 4


@pytest.mark.parametrize("flux", [0.0, 0.005, 0.2])
def test_mean_counts_are_those_of_a_cut_gaussian_rate(flux: float) -> None:
    lens = dataclasses.replace(draw_lens(MODEL_I, "no", np.random.default_rng(8)), exposure=2000.0)
    spread = math.sqrt(flux / lens.exposure + lens.background_rms**2)
    rate = flux * stats.norm.cdf(flux / spread) + spread * stats.norm.pdf(flux / spread)

    counts = expose(np.full((300, 300), flux), lens, np.random.default_rng(9))

    assert counts.mean() == pytest.approx(rate * lens.exposure, abs=5 * counts.std() / 300)


@settings(max_examples=20, deadline=None)
@given(image=hnp.arrays(np.float32, (5, 5), elements=st.floats(0, 10, width=32)), seed=st.integers(0, 2**32))
def test_counts_are_whole_and_have_the_images_shape(image: np.ndarray, seed: int) -> None:
    lens = dataclasses.replace(draw_lens(MODEL_I, "no", np.random.default_rng(0)), exposure=1000.0)

    counts = expose(image, lens, np.random.default_rng(seed))

    assert (counts.dtype, counts.shape) == (np.uint16, image.shape)


def test_counts_beyond_uint16_are_refused() -> None:
    lens = dataclasses.replace(draw_lens(MODEL_I, "no", np.random.default_rng(0)), exposure=1000.0)

    with pytest.raises(ValueError, match="do not fit uint16"):
        expose(np.full((2, 2), 100.0), lens, np.random.default_rng(0))
