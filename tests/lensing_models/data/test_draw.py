"""What is drawn, against the closed forms of its distributions and the published labels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from lensing_models.data.draw import draw_lens, image_stream
from lensing_models.data.law import Poisson, PowerLaw, Uniform
from lensing_models.data.sky import SKIES, AxionLength, Box, Sky

ARCHIVE_FIT, MODEL_I, PYLENSING = SKIES["archive_fit"], SKIES["model_i"], SKIES["pylensing"]
WITH_MASS_FUNCTION = pytest.mark.parametrize("sky", [ARCHIVE_FIT, MODEL_I], ids=lambda sky: sky.name)
EVERY_SKY = pytest.mark.parametrize("sky", SKIES.values(), ids=lambda sky: sky.name)


def mass_moment(law: PowerLaw, order: int) -> float:
    """Return the mean of mass^order [Msun^order] under dN/dm ~ m^slope."""
    power = law.slope + 1
    norm = (law.high**power - law.low**power) / power
    return (law.high ** (power + order) - law.low ** (power + order)) / (power + order) / norm


def fractions_of(sky: Sky, number: int) -> np.ndarray:
    """Return the mass fractions of that many lenses with subhalos."""
    rng = np.random.default_rng(1)
    return np.array([draw_lens(sky, "sphere", rng).mass_fraction for _ in range(number)])


@WITH_MASS_FUNCTION
def test_mass_fractions_have_the_mean_of_the_mass_function(sky: Sky) -> None:
    assert isinstance(sky.subhalo_mass, PowerLaw)
    assert isinstance(sky.subhalo_count, Poisson)
    expected = sky.subhalo_count.mean * mass_moment(sky.subhalo_mass, 1) / sky.halo_mass

    fractions = fractions_of(sky, 4000)

    # The variance of a compound Poisson sum is count x <m^2>; five standard errors, 2 % of the mean.
    error = math.sqrt(sky.subhalo_count.mean * mass_moment(sky.subhalo_mass, 2) / 4000) / sky.halo_mass
    assert np.mean(fractions) == pytest.approx(expected, abs=5 * error)


def test_mass_fractions_are_distributed_as_the_published_labels() -> None:
    # The mass archive's 20,000 labels: mean 0.0417, sd 0.0146, from 0.00285 to 0.1075.
    fractions = fractions_of(ARCHIVE_FIT, 20_000)

    assert fractions.mean() == pytest.approx(0.0417, abs=5e-4)
    assert fractions.std() == pytest.approx(0.0146, abs=5e-4)
    # The extremes of 20,000 draws scatter; the published ones must be of their size.
    assert fractions.min() == pytest.approx(0.00285, abs=0.003)
    assert fractions.max() == pytest.approx(0.1075, abs=0.02)


@WITH_MASS_FUNCTION
def test_subhalo_masses_follow_their_power_law(sky: Sky) -> None:
    law = sky.subhalo_mass
    assert isinstance(law, PowerLaw)
    rng = np.random.default_rng(2)
    lenses = [draw_lens(sky, "sphere", rng) for _ in range(200)]
    masses = np.concatenate([(lens.subhalos[:, 2] / sky.theta_E_of(1.0)) ** 2 for lens in lenses])
    power = law.slope + 1
    low, high = (edge**power for edge in (law.low, law.high))

    result = stats.kstest(masses, lambda mass: (mass**power - low) / (high - low))

    assert result.pvalue > 1e-3


@EVERY_SKY
def test_the_mass_fraction_is_that_of_the_subhalos_drawn(sky: Sky) -> None:
    lens = draw_lens(sky, "sphere", np.random.default_rng(3))

    total = (lens.subhalos[:, 2] ** 2).sum() / sky.theta_E_of(sky.halo_mass) ** 2

    assert lens.mass_fraction == pytest.approx(total, rel=1e-12)


@EVERY_SKY
def test_subhalos_keep_their_distance(sky: Sky) -> None:
    rng = np.random.default_rng(3)
    distances = np.concatenate([np.hypot(*draw_lens(sky, "sphere", rng).subhalos[:, :2].T) for _ in range(50)])

    law = sky.subhalo_radius
    assert isinstance(law, Uniform)
    result = stats.kstest(distances, stats.uniform(law.low, law.high - law.low).cdf)

    assert result.pvalue > 1e-3


def test_a_sphere_has_at_least_one_subhalo() -> None:
    rare = dataclasses.replace(MODEL_I, subhalo_count=Poisson(0.1))
    rng = np.random.default_rng(4)

    assert min(draw_lens(rare, "sphere", rng).mass_fraction for _ in range(50)) > 0


@EVERY_SKY
def test_a_plain_lens_has_no_substructure(sky: Sky) -> None:
    lens = draw_lens(sky, "no", np.random.default_rng(5))

    assert (lens.mass_fraction, len(lens.subhalos), lens.vortex_length) == (0.0, 0, 0.0)


@pytest.mark.parametrize(("log10_axion_mass", "half_length"), [(-24.0, 3.0), (-22.0, 0.03)])
def test_a_lighter_axion_makes_a_longer_vortex(log10_axion_mass: float, half_length: float) -> None:
    sky = dataclasses.replace(MODEL_I, vortex_length=AxionLength(log10_axion_mass))

    lens = draw_lens(sky, "vort", np.random.default_rng(6))

    assert lens.vortex_length / 2 == pytest.approx(half_length)


@pytest.mark.parametrize(("sky", "low", "high"), [(ARCHIVE_FIT, 0.025, 0.075), (PYLENSING, 0.01, 0.01)])
def test_a_vortex_of_the_archives_is_an_arcsecond_long(sky: Sky, low: float, high: float) -> None:
    rng = np.random.default_rng(6)
    lenses = [draw_lens(sky, "vort", rng) for _ in range(50)]

    assert {lens.vortex_length for lens in lenses} == {1.0}
    assert all(low <= lens.mass_fraction <= high for lens in lenses)


@EVERY_SKY
def test_classes_share_what_is_not_substructure(sky: Sky) -> None:
    lenses = [draw_lens(sky, name, image_stream(0, "test", 7)) for name in ("no", "sphere", "vort")]

    assert len({(lens.source_x, lens.source_e1, lens.theta_E, lens.gamma1) for lens in lenses}) == 1


def test_einstein_radii_of_the_archives_are_a_cut_normal() -> None:
    rng = np.random.default_rng(7)
    drawn = [draw_lens(ARCHIVE_FIT, "no", rng).theta_E for _ in range(2000)]
    expected = stats.truncnorm((0.95 - 1.28) / 0.15, (1.6 - 1.28) / 0.15, loc=1.28, scale=0.15)

    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3


def test_the_main_lens_of_model_i_never_varies() -> None:
    rng = np.random.default_rng(7)
    lenses = [draw_lens(MODEL_I, "no", rng) for _ in range(5)]

    # DeepLenseSim, Model I: e1 0.1, gamma1 0.05 and a source of e1 -0.1, e2 0.1.
    for lens in lenses:
        shape = (lens.theta_E, lens.e1, lens.e2, lens.gamma1, lens.gamma2, lens.source_e1, lens.source_e2)
        assert shape == pytest.approx((1.2815, 0.1, 0.0, 0.05, 0.0, -0.1, 0.1), abs=5e-5)


def test_the_shear_of_pylensing_has_any_angle() -> None:
    rng = np.random.default_rng(8)
    lenses = [draw_lens(PYLENSING, "no", rng) for _ in range(500)]
    angles = [math.atan2(lens.gamma2, lens.gamma1) for lens in lenses]

    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_sources_of_model_i_fill_a_box() -> None:
    rng = np.random.default_rng(9)
    assert MODEL_I.source_position == Box(0.35)
    lenses = [draw_lens(MODEL_I, "no", rng) for _ in range(500)]

    for drawn in ([lens.source_x for lens in lenses], [lens.source_y for lens in lenses]):
        assert stats.kstest(drawn, stats.uniform(-0.35, 0.7).cdf).pvalue > 1e-3


def test_streams_differ_by_seed_split_and_index() -> None:
    streams = [image_stream(0, "train", 1), image_stream(1, "train", 1), image_stream(0, "test", 1)]
    streams.append(image_stream(0, "train", 11))

    assert len({stream.random() for stream in streams}) == 4
