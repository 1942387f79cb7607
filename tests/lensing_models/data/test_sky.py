"""Cosmology and identity of the skies."""

from __future__ import annotations

import dataclasses

import pytest

from lensing_models.data.sky import SKIES, luminosity_distance

MODEL_I = SKIES["model_i"]


@pytest.mark.parametrize(("z", "expected_mpc"), [(0.5, 2832.94), (1.0, 6607.66)])
def test_luminosity_distance_is_astropys(z: float, expected_mpc: float) -> None:
    # astropy.cosmology.FlatLambdaCDM(H0=70, Om0=0.3).luminosity_distance(z)
    assert luminosity_distance(z, 70.0, 0.3) == pytest.approx(expected_mpc, abs=0.01)


def test_a_halo_of_1e12_suns_has_the_authors_einstein_radius() -> None:
    assert MODEL_I.theta_E_of(1e12) == pytest.approx(1.2815, abs=5e-5)


def test_einstein_radii_add_up_in_square_as_masses_do() -> None:
    parts = MODEL_I.theta_E_of(3e9) ** 2 + MODEL_I.theta_E_of(5e9) ** 2

    assert MODEL_I.theta_E_of(8e9) ** 2 == pytest.approx(parts, rel=1e-12)


def test_the_digest_changes_with_an_assumption() -> None:
    assert dataclasses.replace(MODEL_I, shear=0.06).digest != MODEL_I.digest


def test_the_digest_tells_laws_with_the_same_numbers_apart() -> None:
    fixed = dataclasses.replace(MODEL_I, subhalo_count=25.0)

    assert fixed.digest != MODEL_I.digest


def test_the_digest_does_not_change_with_a_word() -> None:
    assert dataclasses.replace(MODEL_I, name="other", origin="elsewhere", limits="").digest == MODEL_I.digest


def test_every_sky_is_listed_under_its_name() -> None:
    assert all(name == sky.name for name, sky in SKIES.items())
