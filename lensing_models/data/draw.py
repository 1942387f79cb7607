"""One lens from its own random stream, under a sky."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.law import ANY_ANGLE, draw_value, draw_values
from lensing_models.data.lens import Lens
from lensing_models.data.manifest import SplitName
from lensing_models.data.sky import Around, AxionLength, Box, Light, Sky

LENS_CLASSES = ("no", "sphere", "vort")


def image_stream(seed: int, split: SplitName, index: int) -> np.random.Generator:
    """Return the random stream of one image, which no other image shares.

    The key is a digest of (seed, split, index): a split of any size never repeats an image of
    another split, and a smaller split is the beginning of a larger one.
    """
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw_lens(sky: Sky, lens_class: str, rng: np.random.Generator) -> Lens:
    """Return one lens of *lens_class* under *sky*; what the classes share is drawn first."""
    theta_e = sky.theta_E_of(sky.halo_mass) if sky.theta_E is None else draw_value(sky.theta_E, rng)
    e1, e2 = _ellipticity(draw_value(sky.q, rng), draw_value(sky.angle, rng))
    shear, shear_angle = draw_value(sky.shear, rng), draw_value(sky.shear_angle, rng)
    source_x, source_y = _draw_position(sky.source_position, rng)
    parameters = {
        "theta_E": theta_e,
        "e1": e1,
        "e2": e2,
        "gamma1": shear * math.cos(2 * shear_angle),
        "gamma2": shear * math.sin(2 * shear_angle),
        "source_x": source_x,
        "source_y": source_y,
        **_draw_light("source", sky.source, rng),
        **(_draw_light("light", sky.lens_light, rng) if sky.lens_light else {}),
    }
    subhalos = np.empty((0, 3))
    if lens_class == "sphere":
        subhalos, mass = _draw_subhalos(sky, rng)
        parameters |= {"subhalo_mass": mass, "mass_fraction": mass / sky.halo_mass}
    elif lens_class == "vort":
        parameters |= _draw_vortex(sky, rng)
    return Lens(lens_class=lens_class, subhalos=subhalos, **parameters)


def _ellipticity(q: float, angle: float) -> tuple[float, float]:
    """Return e1 and e2 of an axis ratio and a position angle [rad]: e = (1 - q) / (1 + q) exp(2 i angle)."""
    e = (1 - q) / (1 + q)
    return e * math.cos(2 * angle), e * math.sin(2 * angle)


def _draw_position(where: Box | Around, rng: np.random.Generator) -> tuple[float, float]:
    """Return x and y [arcsec]."""
    if isinstance(where, Box):
        x, y = rng.uniform(-where.half, where.half, 2)
        return float(x), float(y)
    radius, angle = draw_value(where.radius, rng), draw_value(ANY_ANGLE, rng)
    return radius * math.cos(angle), radius * math.sin(angle)


def _draw_light(name: str, light: Light, rng: np.random.Generator) -> dict[str, float]:
    """Return the fields of `Lens` that tell one Sersic profile."""
    e1, e2 = _ellipticity(draw_value(light.q, rng), draw_value(light.angle, rng))
    drawn = {part: draw_value(getattr(light, part), rng) for part in ("amp", "R", "n")}
    return {f"{name}_{part}": value for part, value in {**drawn, "e1": e1, "e2": e2}.items()}


def _draw_subhalos(sky: Sky, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Return (K, 3) positions and Einstein radii [arcsec] with K > 0, and the total mass [Msun]."""
    count = round(draw_value(sky.subhalo_count, rng))
    masses = draw_values(sky.subhalo_mass, rng, count)
    radius, angle = draw_values(sky.subhalo_radius, rng, count), draw_values(ANY_ANGLE, rng, count)
    theta_e = sky.theta_E_of(1.0) * np.sqrt(masses)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), theta_e], axis=1), float(masses.sum())


def _draw_vortex(sky: Sky, rng: np.random.Generator) -> dict[str, float]:
    """Return the vortex' fields of `Lens`."""
    mass, length, axion = draw_value(sky.vortex_mass, rng), sky.vortex_length, math.nan
    if isinstance(length, AxionLength):
        axion = draw_value(length.log10_mass, rng)
        length_arcsec = 2 * 0.03 * 10 ** (-22 - axion)
    else:
        length_arcsec = draw_value(length, rng)
    return {
        "vortex_mass": mass,
        "vortex_theta_E": sky.theta_E_of(mass),
        "mass_fraction": mass / sky.halo_mass,
        "log10_axion_mass": axion,
        "vortex_length": length_arcsec,
        "vortex_angle": draw_value(ANY_ANGLE, rng),
    }
