"""A sky: the physics that lenses are drawn from and how they are seen. One row a sky."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from scipy import constants, integrate

from lensing_models.data.exposure import Noise, RelativeNoise, SkyNoise, TwofoldNoise
from lensing_models.data.law import ANY_ANGLE, CutNormal, Law, Poisson, PowerLaw, Uniform, digest_assumptions

LIGHT_SPEED_KM_S = constants.c / 1e3
SUN_M = 1.3271244e20 / constants.c**2  # [m] GM/c^2 of the Sun: nominal GM, IAU 2015 resolution B3
MPC_M = 1e6 * constants.parsec
ARCSEC_RAD = constants.arcsec
FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian, in units of its sigma


@dataclass(frozen=True, slots=True)
class Box:
    """A position whose x and y are drawn evenly, each on its own, from -half to half [arcsec]."""

    half: float


@dataclass(frozen=True, slots=True)
class Around:
    """A position at any angle and at a distance drawn from *radius* [arcsec]."""

    radius: Law


@dataclass(frozen=True, slots=True)
class AxionLength:
    """The length of a vortex that an axion of this log10 mass [eV] makes.

    The authors' code: half the length is 0.03 arcsec at 1e-22 eV and 3 arcsec at 1e-24 eV.
    """

    log10_mass: Law


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """A Sersic profile.

    Attributes:
        amp: Surface brightness at the half-light radius [counts/s/arcsec^2].
        R: Half-light radius, product average of the two axes [arcsec].
        n: Sersic index.
        q: Axis ratio.
        angle: Position angle of the long axis, from the x axis [rad].
    """

    amp: Law
    R: Law
    n: Law
    q: Law
    angle: Law


@dataclass(frozen=True, kw_only=True, slots=True)
class Sky:
    """One set of physical assumptions. A `Law` is a number, or what each image draws from.

    Attributes:
        z_l: Redshift of the lens; `z_s` that of the source.
        hubble: Hubble constant [km/s/Mpc] of the flat LCDM cosmology.
        omega_m: Its matter density today.
        halo_mass: Mass of the halo [Msun], the scale of mass fractions.
        halo_theta_E: Einstein radius of a point of that mass [arcsec]; None for the cosmology's.
        theta_E: Einstein radius of the main lens [arcsec]; None for the halo's.
        q: Axis ratio of the main lens, an isothermal ellipsoid; 1 is a sphere.
        angle: Its position angle [rad].
        shear: Strength of the external shear; `shear_angle` its angle [rad].
        source: What is lensed, and `source_position` where it lies behind the lens.
        lens_light: What the lens itself shines; None for a dark one.
        noise: How the image is exposed.
        psf_fwhm: Full width at half maximum of the Gaussian PSF [arcsec].
        subgrid: Rays along each side of a pixel.
        subhalo_count: Number of subhalos.
        subhalo_mass: Mass of each [Msun].
        subhalo_radius: Distance of each from the centre [arcsec].
        vortex_mass: Mass of a vortex [Msun].
        vortex_length: Full length of the rod [arcsec], or the axion that makes it.
        origin: Where the numbers come from.
        limits: What the images cannot tell; it stands on the card of every data set.
    """

    name: str
    z_l: float = 0.5
    z_s: float = 1.0
    hubble: float = 70.0
    omega_m: float = 0.3
    halo_mass: float = 1e12
    halo_theta_E: float | None = None  # noqa: N815  the field's symbol
    theta_E: Law | None = None  # noqa: N815  the field's symbol
    q: Law = 1.0
    angle: Law = 0.0
    shear: Law = 0.0
    shear_angle: Law = 0.0
    source: Light
    source_position: Box | Around
    lens_light: Light | None = None
    noise: Noise
    psf_fwhm: float
    subgrid: int = 1
    subhalo_count: Law
    subhalo_mass: Law
    subhalo_radius: Law
    vortex_mass: Law
    vortex_length: Law | AxionLength
    origin: str
    limits: str

    @property
    def digest(self) -> str:
        """Return the SHA-256 of every assumption; the words are none."""
        return digest_assumptions(self, words=("name", "origin", "limits"))

    def theta_E_of(self, mass: float) -> float:  # noqa: N802  the field's symbol
        """Return the Einstein radius [arcsec] of a point of *mass* [Msun].

        Where the halo's is not given, it is in the convention of the authors' code, which puts
        luminosity distances, and their difference, where the textbook has angular diameter
        distances: 1e12 Msun gives 1.2815 arcsec instead of 1.664.
        """
        if self.halo_theta_E is not None:
            return self.halo_theta_E * math.sqrt(mass / self.halo_mass)
        d_l = luminosity_distance(self.z_l, self.hubble, self.omega_m)
        d_s = luminosity_distance(self.z_s, self.hubble, self.omega_m)
        return math.sqrt(4 * SUN_M / MPC_M * mass * (d_s - d_l) / (d_l * d_s)) / ARCSEC_RAD


@cache
def luminosity_distance(z: float, hubble: float, omega_m: float) -> float:
    """Return the luminosity distance [Mpc] to redshift *z* in flat LCDM without radiation."""
    comoving, _ = integrate.quad(lambda at: 1 / math.sqrt(omega_m * (1 + at) ** 3 + 1 - omega_m), 0, z)
    return (1 + z) * LIGHT_SPEED_KM_S / hubble * comoving


#: What the authors' code draws subhalos from; its comment says -1.9, its draws go as m^-0.9.
MASS_FUNCTION = PowerLaw(1e6, 1e10, -0.9)

SKIES: Mapping[str, Sky] = {
    row.name: row
    for row in (
        Sky(
            name="archive_fit",
            theta_E=CutNormal(1.28, 0.15, 0.95, 1.6),
            shear=Uniform(0.0, 0.3),
            # The brightness of the source cancels: the noise is told relative to the image.
            source=Light(amp=20.0, R=0.43, n=1.0, q=Uniform(0.5, 1.0), angle=ANY_ANGLE),
            source_position=Around(Uniform(0.0, 0.5)),
            noise=RelativeNoise(corner_rms=Uniform(0.002, 0.004), pedestal=Uniform(0.01, 0.02)),
            psf_fwhm=0.1 * FWHM,
            subhalo_count=Poisson(27.5),
            subhalo_mass=MASS_FUNCTION,
            subhalo_radius=Uniform(0.25, 2.0),
            vortex_mass=Uniform(2.5e10, 7.5e10),
            vortex_length=1.0,
            origin="our fit to the published DeepLense archives: Einstein radius, shear, source and noise estimated "
            "from their thumbnails, subhalos from all 20,000 published mass labels, the vortex from the authors' "
            "code of the time",
            limits="Estimated from the archives, not their own settings: accuracies compare with the published ones "
            "in kind, not digit by digit.",
        ),
        Sky(
            name="model_i",
            q=(1 - 0.1) / (1 + 0.1),
            shear=0.05,
            source=Light(
                # e1 = -0.1, e2 = 0.1 in the authors' terms: |e| is 0.1 sqrt(2), along 3/8 pi.
                amp=20.0,
                R=0.25,
                n=1.0,
                q=(1 - 0.1 * math.sqrt(2)) / (1 + 0.1 * math.sqrt(2)),
                angle=3 * math.pi / 8,
            ),
            source_position=Box(0.35),
            noise=TwofoldNoise(log10_exposure=Uniform(3.0, 3.5), background_rms=0.01),
            psf_fwhm=0.087,
            subhalo_count=Poisson(25.0),
            subhalo_mass=MASS_FUNCTION,
            subhalo_radius=Uniform(0.25, 2.0),
            vortex_mass=3e10,
            vortex_length=AxionLength(Uniform(-24.0, -22.0)),
            origin="DeepLenseSim, Model I, with its luminosity distances and its twofold shot noise",
            limits="The main lens never varies, so that a lens without substructure is told by the size of its ring; "
            "the shortest vortices are smaller than the PSF.",
        ),
        Sky(
            name="pylensing",
            halo_theta_E=1.2,
            shear=Uniform(0.0, 0.3),
            shear_angle=ANY_ANGLE,
            # The authors give counts/s a pixel of 0.05 arcsec: 400 pixels to the square arcsec.
            source=Light(amp=Uniform(0.7 * 400, 0.9 * 400), R=0.5, n=1.5, q=Uniform(0.7, 1.0), angle=ANY_ANGLE),
            source_position=Around(Uniform(0.0, 1.2)),
            lens_light=Light(amp=1.2 * 400, R=0.5, n=2.5, q=Uniform(0.5, 1.0), angle=ANY_ANGLE),
            noise=SkyNoise(exposure=300.0, sky_level=0.1),
            psf_fwhm=0.1 * FWHM,
            subgrid=2,
            subhalo_count=25.0,
            subhalo_mass=4e8,
            subhalo_radius=Uniform(0.0, 1.0),
            vortex_mass=1e10,
            vortex_length=1.0,
            origin="the authors' earlier code on PyAutoLens, of the archives' time; two of its bugs are not copied: "
            "vortices off centre by mixed units, and Einstein radii of parts that do not add up to the mass",
            limits="All subhalos have one mass, so the mass fraction never varies: no data for the task halo_mass.",
        ),
    )
}
