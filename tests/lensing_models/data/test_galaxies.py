"""Galaxies against the closed forms of their profiles and of their distributions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special

from lensing_models.data.__main__ import main
from lensing_models.data.draw import image_stream
from lensing_models.data.galaxies import (
    GALAXY_CLASSES,
    draw_class,
    draw_galaxy,
    expose_galaxy,
    galaxy_source,
)
from lensing_models.data.galaxy import BANDS, DARK, Bands, Galaxy, arm_wave, render_galaxy
from lensing_models.data.galaxy_physics import GALAXIES, GalaxyPhysics
from lensing_models.data.simulate import SOURCES, make_recipe, simulate_dataset, simulate_images
from lensing_models.data.store import Store, verify_store
from lensing_models.preset import Split
from lensing_models.registry import find_task

TASK = find_task("galaxy_morphology")
SOURCE = SOURCES["galaxies"]
SHARP = 0.01  # [px] FWHM of a PSF that does nothing
WHITE: Bands = (1.0, 1.0, 1.0)


def plain_galaxy(**changes: object) -> Galaxy:
    """Return a galaxy without light, unless *changes* give it some."""
    facts: dict[str, object] = {"galaxy_class": "round", "half_light_radius": 10.0, "magnitude": 16.0}
    return Galaxy(**{**facts, "pixel_scale": 0.4, "psf_fwhm": 1.4, **changes})  # type: ignore[arg-type]  # facts vary


def one_band(galaxy: Galaxy, side: int) -> np.ndarray:
    """Return the image (side, side) in r without PSF, in float64."""
    return render_galaxy(galaxy, side=side, psf_fwhm_px=SHARP, dtype=torch.float64)[1].numpy()


def centred(side: int) -> np.ndarray:
    """Return the coordinates of the pixels along one axis, 0 in the middle."""
    return np.arange(side) - (side - 1) / 2


def spiral(**changes: object) -> Galaxy:
    """Return a disc with two sharp arms seen face on."""
    arms = {"arm_count": 2, "arm_pitch": 0.35, "arm_phase": 1.0, "arm_contrast": WHITE, "arm_sharpness": 2.0}
    facts = {"disc_counts": WHITE, "disc_h": 20.0, "arm_onset": 10.0, **arms, **changes}
    return plain_galaxy(galaxy_class="spiral", **facts)


@pytest.mark.parametrize("n", [1.0, 2.5, 4.0])
def test_half_the_light_of_a_spheroid_is_within_its_half_light_radius(n: float) -> None:
    image = one_band(plain_galaxy(bulge_counts=WHITE, bulge_R=20.0, bulge_n=n), 101)

    inside = np.hypot(*np.meshgrid(centred(101), centred(101))) < 20.0

    # Pixels are in or out whole: the circle's area is met to 0.5 %.
    assert image[inside].sum() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(
    "galaxy",
    [
        plain_galaxy(bulge_counts=WHITE, bulge_R=5.0, bulge_axis_ratio=0.4, position_angle=0.3),
        plain_galaxy(disc_counts=WHITE, disc_h=5.0, axis_ratio=0.5, position_angle=0.3),
        plain_galaxy(disc_counts=WHITE, disc_h=6.0, disc_z0=2.0, position_angle=0.3),
        spiral(disc_h=6.0, arm_onset=4.0, axis_ratio=0.6),
    ],
    ids=["spheroid", "disc", "edge_on", "spiral"],
)
def test_a_part_holds_its_counts(galaxy: Galaxy) -> None:
    assert one_band(galaxy, 151).sum() == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize("q", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("part", ["bulge", "disc"])
def test_second_moments_have_the_axis_ratio_and_the_position_angle(part: str, q: float) -> None:
    shapes: dict[str, dict[str, object]] = {
        "bulge": {"bulge_counts": WHITE, "bulge_R": 12.0, "bulge_axis_ratio": q},
        "disc": {"disc_counts": WHITE, "disc_h": 7.0, "axis_ratio": q},
    }
    light = one_band(plain_galaxy(position_angle=0.6, **shapes[part]), 201)

    x, y = np.meshgrid(centred(201), centred(201))
    moments = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=light.ravel())
    (minor, major), axes = np.linalg.eigh(moments)

    assert math.sqrt(minor / major) == pytest.approx(q, rel=0.01)
    assert abs(axes[:, 1] @ [math.cos(0.6), math.sin(0.6)]) == pytest.approx(1, abs=1e-4)


def test_a_disc_on_edge_is_sech_squared_in_height_and_x_k1_along() -> None:
    image = one_band(plain_galaxy(disc_counts=WHITE, disc_h=12.0, disc_z0=6.0), 101)
    z, x = centred(101)[30:71], centred(101)[55:90]

    # Two samples stand for a pixel: 0.3 % of the peak at this curvature.
    np.testing.assert_allclose(image[30:71, 60] / image[50, 60], np.cosh(z / 6.0) ** -2, rtol=0.01)
    along = x / 12.0 * special.k1(x / 12.0)
    np.testing.assert_allclose(image[50, 55:90] / image[50, 55], along / along[0], rtol=0.01)


@pytest.mark.parametrize(("count", "pitch_deg"), [(2, 12.0), (2, -20.0), (3, 32.0)])
def test_arms_wind_with_their_pitch(count: int, pitch_deg: float) -> None:
    galaxy = spiral(arm_count=count, arm_pitch=math.radians(pitch_deg))
    image = one_band(galaxy, 161)
    log_r, azimuth = np.linspace(math.log(15), math.log(60), 60), np.linspace(0, 2 * math.pi, 256, endpoint=False)

    ring = np.exp(log_r)[:, None] * np.stack([np.sin(azimuth), np.cos(azimuth)])[:, None, :]
    light = ndimage.map_coordinates(image, ring + 80, order=3)
    phase = np.unwrap(-np.angle((light * np.exp(-1j * count * azimuth)).sum(axis=1)))

    slope, _ = np.polyfit(log_r, phase, 1)
    assert slope == pytest.approx(count / math.tan(math.radians(pitch_deg)), rel=0.005)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_arms_move_light_along_circles_and_add_none(sharpness: float) -> None:
    azimuth = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)[:-1]

    wave = arm_wave(spiral(arm_sharpness=sharpness), torch.full_like(azimuth, 30.0), azimuth)

    assert wave.mean().item() == pytest.approx(0, abs=1e-12)
    assert wave.min() > -1


def test_arms_fade_at_the_centre() -> None:
    azimuth = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)

    wave = arm_wave(spiral(arm_onset=10.0), torch.full_like(azimuth, 0.5), azimuth)

    assert wave.abs().max() < 0.01


@pytest.mark.parametrize("galaxy_class", GALAXY_CLASSES)
def test_turning_a_galaxy_by_90_degrees_turns_its_image(galaxy_class: str) -> None:
    galaxy = draw_galaxy(GALAXIES, galaxy_class, np.random.default_rng(1))
    turned = dataclasses.replace(galaxy, x=-galaxy.y, y=galaxy.x, position_angle=galaxy.position_angle + math.pi / 2)

    images = [render_galaxy(one, side=104, psf_fwhm_px=3.0, dtype=torch.float64) for one in (galaxy, turned)]

    torch.testing.assert_close(torch.rot90(images[0], -1, (1, 2)), images[1], rtol=1e-10, atol=0)


@settings(max_examples=40, deadline=None)
@given(galaxy_class=st.sampled_from(GALAXY_CLASSES), seed=st.integers(0, 2**32))
def test_light_is_finite_not_negative_and_no_more_than_there_is(galaxy_class: str, seed: int) -> None:
    galaxy = draw_galaxy(GALAXIES, galaxy_class, np.random.default_rng(seed))

    image = render_galaxy(galaxy, side=104, psf_fwhm_px=galaxy.psf_fwhm / galaxy.pixel_scale)

    total = np.add(galaxy.bulge_counts, galaxy.disc_counts)
    assert (image.shape, image.dtype) == ((3, 104, 104), torch.float32)
    assert image.isfinite().all()
    assert image.min() >= 0
    assert (0.6 * total < image.sum(dim=(1, 2)).numpy()).all()
    assert (image.sum(dim=(1, 2)).numpy() < 1.02 * total).all()


@settings(max_examples=15, deadline=None)
@given(galaxy_class=st.sampled_from(GALAXY_CLASSES), seed=st.integers(0, 2**32))
def test_half_a_discs_light_is_within_its_radius_in_circles(galaxy_class: str, seed: int) -> None:
    galaxy = draw_galaxy(GALAXIES, galaxy_class, np.random.default_rng(seed))
    galaxy = dataclasses.replace(galaxy, x=0.0, y=0.0, bulge_counts=DARK, disc_counts=WHITE)

    image = one_band(galaxy, 201)

    radius = np.hypot(*np.meshgrid(centred(201), centred(201))).ravel()
    order = np.argsort(radius)
    half = radius[order][np.searchsorted(image.ravel()[order].cumsum(), 0.5)]
    # Exact face on; on edge 0.80, by the integral of u K_1(u), and a pixel is a twelfth.
    assert 0.75 < half / galaxy.half_light_radius < 1.1


def brightest(physics: GalaxyPhysics) -> GalaxyPhysics:
    """Return *physics* with every law at the end that makes the central pixel brighter."""
    high = ("surface_brightness", "smooth_bulge_fraction", "spiral_bulge_fraction", "edge_on_bulge_fraction")
    low = ("magnitude", "half_light_radius", "psf_fwhm", "smooth_bulge_R", "bulge_R", "bulge_flattening")
    ends = {name: getattr(physics, name).high for name in (*high, "smooth_n", "bulge_n", "bulge_g_r", "r_i_offset")}
    ends |= {name: getattr(physics, name).low for name in (*low, "cos_inclination", "cigar_q", "scale_height")}
    return dataclasses.replace(physics, **ends, centre=0.25)


@pytest.mark.parametrize("galaxy_class", GALAXY_CLASSES)
def test_the_brightest_galaxy_fits_uint16(galaxy_class: str) -> None:
    rng = np.random.default_rng(2)
    galaxy = draw_galaxy(brightest(GALAXIES), galaxy_class, rng)
    image = render_galaxy(galaxy, side=104, psf_fwhm_px=galaxy.psf_fwhm / galaxy.pixel_scale).numpy()

    assert expose_galaxy(image, galaxy, rng).max() > 0


def test_counts_beyond_uint16_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit uint16"):
        expose_galaxy(np.full((3, 2, 2), 1e5), plain_galaxy(), np.random.default_rng(0))


def test_counts_are_poisson_around_galaxy_and_sky() -> None:
    galaxy = plain_galaxy(sky_counts=(100.0, 200.0, 300.0))

    counts = expose_galaxy(np.full((3, 100, 100), 50.0), galaxy, np.random.default_rng(3))

    mean = np.array([150.0, 250.0, 350.0])
    np.testing.assert_allclose(counts.mean(axis=(1, 2)), mean, atol=5 * math.sqrt(350) / 100)
    # The variance of a Poisson sample has a relative error of sqrt(2 / N); five of it.
    np.testing.assert_allclose(counts.var(axis=(1, 2)), mean, rtol=5 * math.sqrt(2) / 100)


def test_classes_have_the_shares_of_the_clean_sample() -> None:
    rng, number = np.random.default_rng(4), 20_000
    shares = np.array(GALAXIES.class_counts) / sum(GALAXIES.class_counts)

    drawn = [draw_class(rng) for _ in range(number)]

    found = np.array([drawn.count(name) for name in GALAXY_CLASSES]) / number
    assert (np.abs(found - shares) < 5 * np.sqrt(shares * (1 - shares) / number)).all()


def test_colours_are_those_of_the_counts() -> None:
    galaxy = draw_galaxy(GALAXIES, "spiral", np.random.default_rng(5))
    g, r, i = np.array(galaxy.bulge_counts) / GALAXIES.counts_per_nmgy

    assert -2.5 * math.log10(g / r) == pytest.approx(galaxy.bulge_g_r)
    assert -2.5 * math.log10(r / i) == pytest.approx(galaxy.bulge_r_i)


def test_an_image_does_not_depend_on_what_is_made_beside_it() -> None:
    both, _ = simulate_images(TASK, SOURCE, "test", [5, 2], seed=3)
    alone = [simulate_images(TASK, SOURCE, "test", [index], seed=3)[0][0] for index in (5, 2)]

    np.testing.assert_array_equal(both, alone)


def test_the_catalogue_holds_every_true_parameter() -> None:
    _, rows = simulate_images(TASK, SOURCE, "train", range(20))

    for row in rows:
        rng = image_stream(0, "train", int(row["index"]))
        galaxy = draw_galaxy(GALAXIES, draw_class(rng), rng)
        facts = {"galaxy_class": row["class"]}
        for field in dataclasses.fields(Galaxy)[1:]:
            name = field.name
            facts[name] = row[name] if name in row else tuple(row[f"{name}_{band}"] for band in BANDS)  # type: ignore[assignment]  # of any type
        assert repr(Galaxy(**facts)) == repr(galaxy)  # type: ignore[arg-type]  # a repr, for NaN is not NaN


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a small data set of galaxies."""
    return simulate_dataset(
        TASK, Split(train=12, validation=0, test=3), tmp_path_factory.mktemp("data") / "galaxies", seed=1
    )


def test_a_store_of_galaxies_is_whole(store: Store) -> None:
    assert verify_store(store.folder) == store
    assert (store.sky, store.counts(np.arange(2)).shape) == ("galaxies", (2, 3, 104, 104))


def test_a_label_is_the_place_of_its_class(store: Store) -> None:
    assert [TASK.classes[label] for label in store.catalog["label"]] == store.catalog["class"].tolist()


def test_info_says_what_is_in_a_store_of_galaxies(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(store.folder)]) == 0
    assert "12 train, 0 validation, 3 test" in capsys.readouterr().out


def test_galaxies_have_the_same_bytes_from_two_workers(store: Store, tmp_path: Path) -> None:
    recipe = store.manifest.recipe
    split = Split(**recipe.sizes)

    again = simulate_dataset(TASK, split, tmp_path / "again", seed=recipe.seed, workers=2)

    assert again.manifest == store.manifest


@pytest.mark.parametrize(("task", "sky"), [("galaxy_morphology", "model_i"), ("substructure", "galaxies")])
def test_a_source_refuses_a_task_that_it_has_no_images_for(task: str, sky: str) -> None:
    with pytest.raises(ValueError, match="is not about"):
        make_recipe(find_task(task), Split(train=1, validation=0, test=0), sky=sky)


def test_the_task_has_the_classes_of_the_galaxies() -> None:
    assert TASK.classes == GALAXY_CLASSES
    assert len(GALAXIES.class_counts) == len(GALAXY_CLASSES)


def test_an_unknown_class_names_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"unknown galaxy class 'disc'; known: round, .*spiral"):
        draw_galaxy(GALAXIES, "disc", np.random.default_rng(0))


def test_the_digest_is_that_of_the_assumptions() -> None:
    assert dataclasses.replace(GALAXIES, three_arms=0.3).digest != GALAXIES.digest
    assert dataclasses.replace(GALAXIES, name="other", origin="", limits="").digest == GALAXIES.digest
    assert galaxy_source(GALAXIES).digest == GALAXIES.digest
