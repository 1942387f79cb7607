"""The noiseless image of one galaxy in three bands: a spheroid, a disc with or without arms, the PSF.

Every profile is normalised to its analytic total, so that counts are a component's whole light, in
the frame or not. One image is rendered at a time, for the reason that `lens` gives: it must depend
on its own parameters alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch.nn import functional

from lensing_models.data.lens import Pair, blur

BANDS = ("g", "r", "i")
SUBPIXELS = 2  # samples of a pixel along each axis
CORE = 0.25  # [px] radius within which profiles and arms are flat: half the way between samples

Bands = tuple[float, float, float]
"""One value for each of g, r and i, in this order."""

DARK: Bands = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Galaxy:
    """The true parameters of one image; lengths in px, angles in rad, counts in photons detected.

    Attributes:
        galaxy_class: One of `galaxies.GALAXY_CLASSES`.
        x: Centre along the columns, from the middle of the frame; `y` along the rows.
        position_angle: Of the major axis, from the x axis towards y.
        axis_ratio: Minor over major axis as seen on the sky, of a smooth galaxy or a disc with arms;
            NaN edge on, where it follows from `disc_h` and `disc_z0`.
        inclination: Of the disc, 0 face on; NaN for a smooth galaxy.
        half_light_radius: Of the disc, measured in circles as surveys do; nominal, by its second moment.
        magnitude: Apparent magnitude in r [AB mag].
        pixel_scale: Side of a pixel [arcsec].
        psf_fwhm: Full width at half maximum of the PSF [arcsec].
        bulge_fraction: Share of the spheroid in the light in r.
        bulge_R: Its half-light radius along its major axis.
        bulge_n: Its Sersic index.
        bulge_axis_ratio: Its minor over major axis as seen on the sky.
        disc_h: Scale length of the exponential disc.
        disc_z0: Scale height of a disc seen edge on, sech^2(z / z0); 0 for any other.
        arm_count: Number of arms; 0 for a smooth disc.
        arm_pitch: Angle between an arm and a circle; negative for arms that wind the other way.
        arm_phase: Azimuth in the disc of an arm at the radius `disc_h`.
        arm_contrast: Strength of the arms by band; 1 is the most, 0 none.
        arm_sharpness: Concentration of a von Mises profile across an arm; 0 is flat.
        arm_onset: Radius inside which the arms fade.
        bulge_g_r: Colour of the spheroid [mag], as `bulge_r_i`; `disc_g_r` and `disc_r_i` of the disc.
        bulge_counts: Counts of the spheroid by band.
        disc_counts: Counts of the disc by band.
        sky_counts: Mean counts of the sky in a pixel by band.
    """

    galaxy_class: str
    x: float = 0.0
    y: float = 0.0
    position_angle: float = 0.0
    axis_ratio: float = 1.0
    inclination: float = math.nan
    half_light_radius: float
    magnitude: float
    pixel_scale: float
    psf_fwhm: float
    bulge_fraction: float = 1.0
    bulge_R: float = 1.0  # noqa: N815  the field's symbol
    bulge_n: float = 1.0
    bulge_axis_ratio: float = 1.0
    disc_h: float = 1.0
    disc_z0: float = 0.0
    arm_count: int = 0
    arm_pitch: float = math.nan
    arm_phase: float = math.nan
    arm_contrast: Bands = DARK
    arm_sharpness: float = 0.0
    arm_onset: float = 0.0
    bulge_g_r: float = math.nan
    bulge_r_i: float = math.nan
    disc_g_r: float = math.nan
    disc_r_i: float = math.nan
    bulge_counts: Bands = DARK
    disc_counts: Bands = DARK
    sky_counts: Bands = DARK


def render_galaxy(galaxy: Galaxy, *, side: int, psf_fwhm_px: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the noiseless image of *galaxy*, without the sky.

    Args:
        galaxy: What to draw.
        side: Height and width [px].
        psf_fwhm_px: Full width at half maximum of the Gaussian PSF, the same in each band [px].
        dtype: float32, or float64 for comparisons.

    Returns:
        (3, side, side) [counts/px], not negative, in the bands g, r, i; rows run along y, columns
        along x.
    """
    axis = (torch.arange(side * SUBPIXELS, dtype=torch.float64) + 0.5) / SUBPIXELS - side / 2
    x, y = (axis[None, :] - galaxy.x).to(dtype), (axis[:, None] - galaxy.y).to(dtype)
    c, s = math.cos(galaxy.position_angle), math.sin(galaxy.position_angle)
    along, across = c * x + s * y, c * y - s * x
    bulge = _pool(spheroid(galaxy, along, across))
    smooth, arms = (_pool(part) for part in disc(galaxy, along, across))
    bands = zip(galaxy.bulge_counts, galaxy.disc_counts, galaxy.arm_contrast, strict=True)
    sharp = [of_bulge * bulge + of_disc * (smooth + contrast * arms) for of_bulge, of_disc, contrast in bands]
    return blur(torch.stack(sharp), psf_fwhm_px)


def spheroid(galaxy: Galaxy, along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Return the Sersic profile [1/px^2] at points along and across the major axis; its total is 1.

    Graham & Driver 2005, astro-ph/0503176, equations 1 and 4, with the exact b_n.
    """
    n, b = galaxy.bulge_n, float(special.gammaincinv(2 * galaxy.bulge_n, 0.5))
    log_total = math.log(2 * math.pi * n * galaxy.bulge_axis_ratio * galaxy.bulge_R**2)
    log_total += math.lgamma(2 * n) - 2 * n * math.log(b)
    radius = _radius(along, across, galaxy.bulge_axis_ratio).mul_(1 / galaxy.bulge_R)
    return radius.pow_(1 / n).mul_(-b).sub_(log_total).exp_()


def disc(galaxy: Galaxy, along: torch.Tensor, across: torch.Tensor) -> Pair:
    """Return the disc without arms, whose total is 1, and what arms of contrast 1 add to it [1/px^2].

    The exponential disc, inclined and thin, or edge on: I = I_0 (x / h) K_1(x / h) sech^2(z / z0),
    van der Kruit & Searle 1981, A&A 95, 105, equation 5.
    """
    h, z0 = galaxy.disc_h, galaxy.disc_z0
    if z0 > 0:
        reach = along.abs().clamp_(min=CORE).mul_(1 / h)
        layer = (across / z0).cosh_().pow_(-2)
        edge_on = torch.special.modified_bessel_k1(reach).mul_(reach).mul_(1 / (2 * math.pi * h * z0)) * layer
        return edge_on, torch.zeros_like(edge_on)
    radius = _radius(along, across, galaxy.axis_ratio)
    face = (radius / -h).exp_().mul_(1 / (2 * math.pi * h**2 * galaxy.axis_ratio))
    if not galaxy.arm_count:
        return face, torch.zeros_like(face)
    azimuth = torch.atan2(across / galaxy.axis_ratio, along)
    return face, arm_wave(galaxy, radius, azimuth).mul_(face)


def arm_wave(galaxy: Galaxy, radius: torch.Tensor, azimuth: torch.Tensor) -> torch.Tensor:
    """Return the relative excess of logarithmic arms of contrast 1 at polar points of the disc's plane.

    An arm lies at azimuth = phase + ln(R / h) / tan(pitch). Across it the light follows the von Mises
    profile exp(k cos) / I_0(k), whose mean around a circle is 1: arms move light along circles, they
    add none, and the excess is never under -1. Inside the onset they fade as 1 - exp(-(R / onset)^2).
    """
    winding = (radius / galaxy.disc_h).log_().mul_(1 / math.tan(galaxy.arm_pitch)).add_(galaxy.arm_phase)
    k = galaxy.arm_sharpness
    across_arm = (azimuth - winding).mul_(galaxy.arm_count).cos_().sub_(1).mul_(k).exp_()
    fade = (radius / galaxy.arm_onset).square_().neg_().expm1_().neg_()
    return across_arm.mul_(1 / float(special.i0e(k))).sub_(1).mul_(fade)


def _radius(along: torch.Tensor, across: torch.Tensor, axis_ratio: float) -> torch.Tensor:
    """Return the major half axis of the ellipse through each point, at least CORE."""
    return torch.hypot(along, across / axis_ratio).clamp_(min=CORE)


def _pool(samples: torch.Tensor) -> torch.Tensor:
    """Return the mean of each pixel's samples."""
    return functional.avg_pool2d(samples[None], SUBPIXELS)[0]
