"""Galaxies of the five Galaxy Zoo classes, each from its own random stream: drawn, then exposed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.exposure import MOST_COUNTS
from lensing_models.data.galaxy import BANDS, Bands, Galaxy, render_galaxy
from lensing_models.data.galaxy_physics import GALAXIES, GalaxyPhysics
from lensing_models.data.law import draw_value
from lensing_models.data.source import CatalogRow, Source
from lensing_models.specs import TaskSpec

GALAXY_CLASSES = ("round", "in_between", "cigar", "edge_on", "spiral")
SIMULATOR_VERSION = 2  # raise it when an image of the same recipe changes
EXPONENTIAL_R50 = 1.67835  # half-light radius of an exponential disc in scale lengths


def galaxy_source(physics: GalaxyPhysics) -> Source:
    """Return the source of images under *physics*."""
    return Source(
        name=physics.name,
        digest=physics.digest,
        simulator=SIMULATOR_VERSION,
        origin=physics.origin,
        limits=physics.limits,
        refuse=_refuse,
        batch=_batch_size,
        make=partial(_make_images, physics),
    )


def draw_class(rng: np.random.Generator, physics: GalaxyPhysics = GALAXIES) -> str:
    """Return a class, drawn with the shares of the clean sample."""
    edges = np.cumsum(physics.class_counts)
    return GALAXY_CLASSES[int(np.searchsorted(edges, rng.uniform(0, edges[-1]), side="right"))]


def draw_galaxy(physics: GalaxyPhysics, galaxy_class: str, rng: np.random.Generator) -> Galaxy:
    """Return one galaxy of *galaxy_class* under *physics*; what the classes share is drawn first.

    Raises:
        LookupError: If the class is unknown.
    """
    if galaxy_class not in GALAXY_CLASSES:
        raise LookupError(f"unknown galaxy class {galaxy_class!r}; known: {', '.join(GALAXY_CLASSES)}")
    magnitude, half_light_radius = draw_value(physics.magnitude, rng), draw_value(physics.half_light_radius, rng)
    # Half the light within R50, on pi R50^2.
    half_light_arcsec = 10 ** ((draw_value(physics.surface_brightness, rng) - magnitude) / 5) / math.sqrt(2 * math.pi)
    pixel_scale = half_light_arcsec / half_light_radius
    frame = Galaxy(
        galaxy_class=galaxy_class,
        x=draw_value(physics.centre, rng),
        y=draw_value(physics.centre, rng),
        position_angle=float(rng.uniform(0, math.pi)),
        half_light_radius=half_light_radius,
        magnitude=magnitude,
        pixel_scale=pixel_scale,
        psf_fwhm=draw_value(physics.psf_fwhm, rng),
        sky_counts=_by_band(physics, [_nanomaggies(sky) * pixel_scale**2 for sky in physics.sky_brightness]),
    )
    draw = {"edge_on": _draw_edge_on, "spiral": _draw_spiral}.get(galaxy_class, _draw_smooth)
    return _lit(draw(frame, physics, rng), physics, rng)


def _draw_smooth(frame: Galaxy, physics: GalaxyPhysics, rng: np.random.Generator) -> Galaxy:
    """Return *frame* with a spheroid and a smooth disc of the same shape."""
    laws = {"round": physics.round_q, "in_between": physics.in_between_q, "cigar": physics.cigar_q}
    q = draw_value(laws[frame.galaxy_class], rng)
    disc_r50 = _major_radius(frame, q)
    return dataclasses.replace(
        frame,
        axis_ratio=q,
        bulge_axis_ratio=q,
        bulge_fraction=draw_value(physics.smooth_bulge_fraction, rng),
        bulge_n=draw_value(physics.smooth_n, rng),
        bulge_R=disc_r50 * draw_value(physics.smooth_bulge_R, rng),
        bulge_g_r=draw_value(physics.bulge_g_r, rng),
        disc_h=disc_r50 / EXPONENTIAL_R50,
        disc_g_r=draw_value(physics.smooth_disc_g_r, rng),
    )


def _draw_edge_on(frame: Galaxy, physics: GalaxyPhysics, rng: np.random.Generator) -> Galaxy:
    """Return *frame* with a disc seen edge on and a bulge."""
    disc_r50 = _major_radius(frame, 0.0)
    disc_h = disc_r50 / EXPONENTIAL_R50
    frame = dataclasses.replace(
        frame,
        axis_ratio=math.nan,
        inclination=math.pi / 2,
        disc_h=disc_h,
        disc_z0=disc_h * draw_value(physics.scale_height, rng),
        bulge_fraction=draw_value(physics.edge_on_bulge_fraction, rng),
    )
    return _with_bulge(frame, disc_r50, physics, rng)


def _draw_spiral(frame: Galaxy, physics: GalaxyPhysics, rng: np.random.Generator) -> Galaxy:
    """Return *frame* with a disc with arms and a bulge."""
    inclination = math.acos(draw_value(physics.cos_inclination, rng))
    q = _seen_ratio(physics.disc_flattening, inclination)
    disc_r50 = _major_radius(frame, q)
    contrast = draw_value(physics.arm_contrast, rng)
    frame = dataclasses.replace(
        frame,
        axis_ratio=q,
        inclination=inclination,
        disc_h=disc_r50 / EXPONENTIAL_R50,
        arm_count=3 if rng.random() < physics.three_arms else 2,
        arm_pitch=math.radians(draw_value(physics.arm_pitch, rng)) * (1 if rng.random() < 0.5 else -1),
        arm_phase=float(rng.uniform(0, 2 * math.pi)),
        arm_contrast=(contrast * (1 + physics.arm_colour), contrast, contrast * (1 - physics.arm_colour)),
        arm_sharpness=draw_value(physics.arm_sharpness, rng),
        arm_onset=disc_r50 / EXPONENTIAL_R50 * draw_value(physics.arm_onset, rng),
        bulge_fraction=draw_value(physics.spiral_bulge_fraction, rng),
    )
    return _with_bulge(frame, disc_r50, physics, rng)


def _with_bulge(frame: Galaxy, disc_r50: float, physics: GalaxyPhysics, rng: np.random.Generator) -> Galaxy:
    """Return the disc galaxy *frame* with the shape of its bulge and the colours of both parts."""
    return dataclasses.replace(
        frame,
        bulge_R=disc_r50 * draw_value(physics.bulge_R, rng),
        bulge_n=draw_value(physics.bulge_n, rng),
        bulge_axis_ratio=_seen_ratio(draw_value(physics.bulge_flattening, rng), frame.inclination),
        bulge_g_r=draw_value(physics.bulge_g_r, rng),
        disc_g_r=draw_value(physics.disc_g_r, rng),
    )


def _lit(galaxy: Galaxy, physics: GalaxyPhysics, rng: np.random.Generator) -> Galaxy:
    """Return *galaxy* with r - i and the counts of its parts."""
    total, share = _nanomaggies(galaxy.magnitude), galaxy.bulge_fraction
    bulge_r_i = physics.r_i_slope * galaxy.bulge_g_r + draw_value(physics.r_i_offset, rng)
    disc_r_i = physics.r_i_slope * galaxy.disc_g_r + draw_value(physics.r_i_offset, rng)
    return dataclasses.replace(
        galaxy,
        bulge_r_i=bulge_r_i,
        disc_r_i=disc_r_i,
        bulge_counts=_by_band(physics, _colour(total * share, galaxy.bulge_g_r, bulge_r_i)),
        disc_counts=_by_band(physics, _colour(total * (1 - share), galaxy.disc_g_r, disc_r_i)),
    )


def expose_galaxy(image: NDArray[np.floating], galaxy: Galaxy, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the counts of an exposure: Poisson, with the mean of galaxy and sky.

    Args:
        image: (3, H, W) noiseless image without the sky [counts/px].
        galaxy: Gives the sky of each band, which stays in the counts.
        rng: The image's own stream.

    Raises:
        ValueError: If a count does not fit uint16.
    """
    counts = rng.poisson(image + np.array(galaxy.sky_counts)[:, None, None])
    if counts.max() > MOST_COUNTS:
        raise ValueError(f"{counts.max()} counts in a pixel do not fit uint16; the galaxy is too bright")
    exposed: NDArray[np.uint16] = counts.astype(np.uint16)
    return exposed


def _refuse(task: TaskSpec) -> str | None:
    channels, height, width = task.image_shape
    if set(task.classes) == set(GALAXY_CLASSES) and channels == len(BANDS) and height == width:
        return None
    return f"task {task.name!r} is not about square images in three bands of {', '.join(GALAXY_CLASSES)}"


def _batch_size(device: str) -> int:
    if device != "cpu":
        raise ValueError(f"galaxies are made on the CPU, not on {device}; leave --device out")
    return 1


def _make_images(
    physics: GalaxyPhysics,
    task: TaskSpec,
    indices: Sequence[int],
    streams: Sequence[np.random.Generator],
    device: str,
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return counts and rows as `Source.make`, made on the CPU; the indices are in the streams already."""
    made = [_draw_image(physics, task, rng) for rng in streams]
    return np.stack([image for image, _ in made]), [row for _, row in made]


def _draw_image(
    physics: GalaxyPhysics, task: TaskSpec, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], CatalogRow]:
    """Return one image (3, H, W) and its row.

    The bands are i, r and g: red, green and blue, as in the composites that Galaxy Zoo shows.
    """
    galaxy = draw_galaxy(physics, draw_class(rng, physics), rng)
    psf_fwhm_px = galaxy.psf_fwhm / galaxy.pixel_scale
    image = render_galaxy(galaxy, side=task.image_shape[1], psf_fwhm_px=psf_fwhm_px)
    row: CatalogRow = {"label": task.classes.index(galaxy.galaxy_class), "class": galaxy.galaxy_class}
    for name, value in dataclasses.asdict(galaxy).items():
        if isinstance(value, tuple):
            row |= {f"{name}_{band}": one for band, one in zip(BANDS, value, strict=True)}
        elif name != "galaxy_class":
            row[name] = value
    return expose_galaxy(image.numpy(), galaxy, rng)[::-1], row


def _major_radius(frame: Galaxy, axis_ratio: float) -> float:
    """Return the major half-light radius [px] of a body with the second moment of a round one."""
    return frame.half_light_radius * math.sqrt(2 / (1 + axis_ratio**2))


def _seen_ratio(flattening: float, inclination: float) -> float:
    """Return the axis ratio of an oblate spheroid on the sky: Hubble 1926, ApJ 64, 321."""
    return math.sqrt((1 - flattening**2) * math.cos(inclination) ** 2 + flattening**2)


def _nanomaggies(magnitude: float) -> float:
    """Return the flux [nMgy] of an AB magnitude."""
    return float(10 ** (0.4 * (22.5 - magnitude)))


def _colour(flux_r: float, g_r: float, r_i: float) -> list[float]:
    """Return the flux in g, r and i."""
    return [flux_r * 10 ** (-0.4 * g_r), flux_r, flux_r * 10 ** (0.4 * r_i)]


def _by_band(physics: GalaxyPhysics, fluxes: list[float]) -> Bands:
    """Return the counts of *fluxes* [nMgy]."""
    g, r, i = (flux * per for flux, per in zip(fluxes, physics.counts_per_nmgy, strict=True))
    return g, r, i
