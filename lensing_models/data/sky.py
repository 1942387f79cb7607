"""A sky: the physics that lenses are drawn from and how they are seen. One row a sky."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from scipy import constants, integrate

LIGHT_SPEED_KM_S = constants.c / 1e3
SUN_M = 1.3271244e20 / constants.c**2  # [m] GM/c^2 of the Sun: nominal GM, IAU 2015 resolution B3
MPC_M = 1e6 * constants.parsec
ARCSEC_RAD = constants.arcsec


@dataclass(frozen=True, slots=True)
class Uniform:
    """A quantity drawn evenly from *low* to *high*."""

    low: float
    high: float


Law = float | Uniform
"""How a quantity is distributed; a plain number is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sky:
    """One set of physical assumptions. A field is a number, or a `Law` that each image draws from.

    Attributes:
        z_l: Redshift of the lens; `z_s` that of the source.
        hubble: Hubble constant [km/s/Mpc] of the flat LCDM cosmology.
        omega_m: Its matter density today.
        halo_mass: Mass of the halo [Msun]; it sets the Einstein radius and the scale of fractions.
        source_centre: Source position, each of x and y drawn on its own [arcsec].
        log10_exposure: log10 of the exposure time [s].
        background_rms: Rms of the background [counts/s/px].
        psf_fwhm: Full width at half maximum of the Gaussian PSF [arcsec].
        subhalo_count: Mean of the Poisson number of subhalos; a draw of none is drawn again.
        subhalo_mass: Lightest and heaviest subhalo [Msun].
        subhalo_slope: Exponent of the probability density in mass, not -1.
        subhalo_radius: Distance of a subhalo from the centre [arcsec].
        vortex_mass: Mass of a vortex [Msun].
        log10_axion_mass: log10 of the axion mass [eV], from which the vortex has its length.
        source: Where the numbers come from.
        limits: What the images cannot tell; it stands on the card of every data set.
    """

    name: str
    z_l: float = 0.5
    z_s: float = 1.0
    hubble: float = 70.0
    omega_m: float = 0.3
    halo_mass: float = 1e12
    e1: Law = 0.0
    e2: Law = 0.0
    gamma1: Law = 0.0
    gamma2: Law = 0.0
    source_centre: Law
    source_R: Law  # noqa: N815  the field's symbol
    source_n: Law = 1.0
    source_e1: Law = 0.0
    source_e2: Law = 0.0
    source_amp: Law
    log10_exposure: Law
    background_rms: Law
    psf_fwhm: float
    subhalo_count: float
    subhalo_mass: tuple[float, float] = (1e6, 1e10)
    subhalo_slope: float = -0.9
    subhalo_radius: Law
    vortex_mass: Law
    log10_axion_mass: Law
    source: str
    limits: str

    @property
    def digest(self) -> str:
        """Return the SHA-256 of every assumption; the words are none."""
        facts = dataclasses.asdict(self)
        del facts["name"], facts["source"], facts["limits"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def theta_E_of(self, mass: float) -> float:  # noqa: N802  the field's symbol
        """Return the Einstein radius [arcsec] of *mass* [Msun] in the convention of the authors' code.

        It puts luminosity distances, and their difference, where the textbook has angular diameter
        distances: 1e12 Msun gives 1.2815 arcsec instead of 1.664.
        """
        d_l = luminosity_distance(self.z_l, self.hubble, self.omega_m)
        d_s = luminosity_distance(self.z_s, self.hubble, self.omega_m)
        return math.sqrt(4 * SUN_M / MPC_M * mass * (d_s - d_l) / (d_l * d_s)) / ARCSEC_RAD


@cache
def luminosity_distance(z: float, hubble: float, omega_m: float) -> float:
    """Return the luminosity distance [Mpc] to redshift *z* in flat LCDM without radiation."""
    comoving, _ = integrate.quad(lambda at: 1 / math.sqrt(omega_m * (1 + at) ** 3 + 1 - omega_m), 0, z)
    return (1 + z) * LIGHT_SPEED_KM_S / hubble * comoving


SKIES: Mapping[str, Sky] = {
    row.name: row
    for row in (
        Sky(
            name="model_i",
            e1=0.1,
            gamma1=0.05,
            source_centre=Uniform(-0.35, 0.35),
            source_R=0.25,
            source_e1=-0.1,
            source_e2=0.1,
            source_amp=20.0,
            log10_exposure=Uniform(3.0, 3.5),
            background_rms=0.01,
            psf_fwhm=0.087,
            subhalo_count=25.0,
            subhalo_radius=Uniform(0.25, 2.0),
            vortex_mass=3e10,
            log10_axion_mass=Uniform(-24.0, -22.0),
            source="DeepLenseSim, Model I, with its luminosity distances and its twofold shot noise",
            limits="The main lens never varies, so that a lens without substructure is told by the size of its ring; "
            "the shortest vortices are smaller than the PSF.",
        ),
    )
}
