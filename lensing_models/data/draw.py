"""One image from its own random stream: draw the lens under a sky, then expose it."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.lens import Lens
from lensing_models.data.manifest import SplitName
from lensing_models.data.sky import Law, Sky, Uniform

LENS_CLASSES = ("no", "sphere", "vort")
MOST_COUNTS = np.iinfo(np.uint16).max


def image_stream(seed: int, split: SplitName, index: int) -> np.random.Generator:
    """Return the random stream of one image, which no other image shares.

    The key is a digest of (seed, split, index): a split of any size never repeats an image of
    another split, and a smaller split is the beginning of a larger one.
    """
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw_lens(sky: Sky, lens_class: str, rng: np.random.Generator) -> Lens:
    """Return one lens of *lens_class* under *sky*; what the classes share is drawn first."""
    parameters: dict[str, float] = {
        name: _draw(getattr(sky, name), rng)
        for name in ("e1", "e2", "gamma1", "gamma2", "source_R", "source_n", "source_e1", "source_e2", "source_amp")
    }
    parameters["source_x"], parameters["source_y"] = _draw(sky.source_centre, rng), _draw(sky.source_centre, rng)
    parameters["exposure"] = 10 ** _draw(sky.log10_exposure, rng)
    parameters["background_rms"] = _draw(sky.background_rms, rng)
    subhalos = np.empty((0, 3))
    if lens_class == "sphere":
        subhalos, mass = _draw_subhalos(sky, rng)
        parameters |= {"subhalo_mass": mass, "mass_fraction": mass / sky.halo_mass}
    elif lens_class == "vort":
        parameters |= _draw_vortex(sky, rng)
    return Lens(lens_class=lens_class, theta_E=sky.theta_E_of(sky.halo_mass), subhalos=subhalos, **parameters)


def _draw(law: Law, rng: np.random.Generator) -> float:
    return float(rng.uniform(law.low, law.high)) if isinstance(law, Uniform) else law


def _draw_subhalos(sky: Sky, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Return (K, 3) positions and Einstein radii [arcsec] with K > 0, and the total mass [Msun]."""
    count = 0
    while count == 0:  # the logarithm of the mass fraction must exist; P(0) is 1e-11 at a mean of 25
        count = int(rng.poisson(sky.subhalo_count))
    power = sky.subhalo_slope + 1
    low, high = (edge**power for edge in sky.subhalo_mass)
    masses = rng.uniform(low, high, count) ** (1 / power)
    radius = np.array([_draw(sky.subhalo_radius, rng) for _ in range(count)])
    angle = rng.uniform(0, 2 * math.pi, count)
    theta_e = sky.theta_E_of(1.0) * np.sqrt(masses)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), theta_e], axis=1), float(masses.sum())


def _draw_vortex(sky: Sky, rng: np.random.Generator) -> dict[str, float]:
    """Return the vortex' fields of `Lens`."""
    mass = _draw(sky.vortex_mass, rng)
    log10_axion_mass = _draw(sky.log10_axion_mass, rng)
    return {
        "vortex_mass": mass,
        "vortex_theta_E": sky.theta_E_of(mass),
        "mass_fraction": mass / sky.halo_mass,
        "log10_axion_mass": log10_axion_mass,
        # The authors' code: half the length is 0.03 arcsec at 1e-22 eV and 3 arcsec at 1e-24 eV.
        "vortex_length": 2 * 0.03 * 10 ** (-22 - log10_axion_mass),
        "vortex_angle": float(rng.uniform(0, 2 * math.pi)),
    }


def expose(image: NDArray[np.floating], lens: Lens, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the counts of an exposure, with the noise of the authors' code.

    A rate is the image plus Gaussian noise of variance |image| / exposure + background_rms^2; the
    counts are Poisson with mean rate x exposure, or 0 where that is negative. So shot noise enters
    twice, and half of the empty sky has no count at all.

    Args:
        image: Noiseless image [counts/s/px].
        lens: Gives exposure and background.
        rng: The image's own stream.

    Raises:
        ValueError: If a count does not fit uint16.
    """
    spread = np.sqrt(np.abs(image) / lens.exposure + lens.background_rms**2)
    rate = image + spread * rng.standard_normal(image.shape)
    counts = rng.poisson(np.maximum(rate * lens.exposure, 0))
    if counts.max() > MOST_COUNTS:
        raise ValueError(f"{counts.max()} counts in a pixel do not fit uint16; the sky is too bright for its exposure")
    exposed: NDArray[np.uint16] = counts.astype(np.uint16)
    return exposed
