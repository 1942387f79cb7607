"""The noiseless image of one lens: deflections of its parts, a Sersic source behind it, the PSF.

Signs and normalisations are lenstronomy's, against which the tests hold every formula. One image is
rendered at a time on purpose: in a batch the last bits of `exp` or `atan2` depend on where an image
falls in the processor's vectors, and an image must depend on its own parameters alone. It costs
nothing where it matters: 22,500 pixels stay in the cache, and the noise takes longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

SOFTENING = 1e-6  # [arcsec] radius within which point masses and rod ends are blunted: keeps all finite
SOURCE_CORE = 1e-4  # [arcsec] radius within which a Sersic profile is flat, as in lenstronomy
PSF_REACH = 3.0  # [sigma] at which the PSF is cut off
ROUNDEST = 1 - 1e-4  # axis ratio above which the ellipsoid's formula loses all digits

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lens:
    """The true parameters of one image; angles on the sky in arcsec unless another unit is stated.

    Attributes:
        lens_class: ``no``, ``sphere`` (subhalos) or ``vort`` (a vortex).
        theta_E: Einstein radius of the main lens, an isothermal ellipsoid in the middle.
        e1: Ellipticity of the main lens; the source has its own.
        gamma1: External shear.
        source_R: Half-light radius, product average of the two axes.
        source_n: Sersic index.
        source_amp: Surface brightness at the half-light radius [counts/s/arcsec^2].
        exposure: Exposure time [s].
        background_rms: Rms of the background [counts/s/px].
        subhalos: (K, 3) float64: x, y and Einstein radius of each point mass.
        subhalo_mass: Their total mass [Msun].
        vortex_theta_E: Einstein radius of a point with the vortex' mass; 0 without a vortex.
        vortex_length: Full length of the rod; 0 without a vortex.
        vortex_angle: Its position angle from the x axis [rad].
        vortex_mass: Its mass [Msun].
        log10_axion_mass: log10 of the axion mass [eV] that sets the length; NaN without a vortex.
        mass_fraction: Mass of the substructure over that of the halo.
    """

    lens_class: str
    theta_E: float  # noqa: N815  the field's symbol
    e1: float
    e2: float
    gamma1: float
    gamma2: float
    source_x: float
    source_y: float
    source_R: float  # noqa: N815  the field's symbol
    source_n: float
    source_e1: float
    source_e2: float
    source_amp: float
    exposure: float
    background_rms: float
    subhalos: NDArray[np.float64]
    subhalo_mass: float = 0.0
    vortex_theta_E: float = 0.0  # noqa: N815  the field's symbol
    vortex_length: float = 0.0
    vortex_angle: float = 0.0
    vortex_mass: float = 0.0
    log10_axion_mass: float = math.nan
    mass_fraction: float = 0.0


def render(
    lens: Lens, *, side: int, pixel_scale: float, psf_fwhm: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the noiseless image of *lens*.

    Args:
        lens: What to draw.
        side: Height and width [px].
        pixel_scale: Side of a pixel [arcsec].
        psf_fwhm: Full width at half maximum of the Gaussian PSF [arcsec].
        dtype: float32, or float64 for comparisons.

    Returns:
        (side, side) [counts/s/px]; rows run along y, columns along x.
    """
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * pixel_scale
    alpha_x, alpha_y = deflection(lens, axis[None, :], axis[:, None], dtype)
    x, y = axis[None, :].to(dtype), axis[:, None].to(dtype)
    beta_x = torch.add((1 - lens.gamma1) * x, y, alpha=-lens.gamma2).sub_(alpha_x)
    beta_y = torch.add((1 + lens.gamma1) * y, x, alpha=-lens.gamma2).sub_(alpha_y)
    return blur(sersic(lens, beta_x, beta_y).mul_(pixel_scale**2), psf_fwhm / pixel_scale)


def deflection(lens: Lens, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> Pair:
    """Return the deflection [arcsec] by main lens, subhalos and vortex, without the shear.

    Args:
        lens: Whose deflection.
        x: (1, W) float64, columns of the image plane [arcsec].
        y: (H, 1) float64, rows [arcsec].
        dtype: Type of the result.

    Returns:
        Two (H, W) tensors, along x and along y.
    """
    alpha_x, alpha_y = _ellipsoid(lens, x.to(dtype), y.to(dtype))
    if len(lens.subhalos):
        _add_subhalos(alpha_x, alpha_y, lens, x, y)
    if lens.vortex_length > 0:
        rod_x, rod_y = _rod(lens, x.to(dtype), y.to(dtype))
        alpha_x += rod_x
        alpha_y += rod_y
    return alpha_x, alpha_y


def _ellipsoid(lens: Lens, x: torch.Tensor, y: torch.Tensor) -> Pair:
    """Return the deflection of a singular isothermal ellipsoid: Keeton 2001, astro-ph/0102341, no core."""
    q, angle = _axis_ratio(lens.e1, lens.e2)
    q = min(q, ROUNDEST)
    along, across = _turn(x, y, angle)
    f = math.sqrt(1 - q * q)
    psi = (along * along).mul_(q * q).addcmul_(across, across).sqrt_().clamp_(min=SOFTENING)
    strength = lens.theta_E * math.sqrt(q) / f
    # atan2(a, b) is atan(a / b) for b > 0, at half the time.
    pull_along = torch.atan2(along.mul_(f), psi).mul_(strength)
    pull_across = across.mul_(f).div_(psi).atanh_().mul_(strength)
    return _turn(pull_along, pull_across, -angle)


def _add_subhalos(alpha_x: torch.Tensor, alpha_y: torch.Tensor, lens: Lens, x: torch.Tensor, y: torch.Tensor) -> None:
    """Add theta_E^2 d / |d|^2 for each point mass, d being the way from it, in place."""
    px, py, theta_e = torch.from_numpy(lens.subhalos).T[:, :, None, None].unbind()
    dx, dy = x - px, y - py
    # 1 / (dx^2/te^2 + dy^2/te^2): all but the sum and the reciprocal is work on single rows.
    squares = ((dx * dx + SOFTENING**2) / theta_e**2, dy * dy / theta_e**2)
    rows = [part.to(alpha_x.dtype).unbind() for part in (dx, dy, *squares)]
    for step_x, step_y, square_x, square_y in zip(*rows, strict=True):
        pull = (square_x + square_y).reciprocal_()
        alpha_x.addcmul_(pull, step_x)
        alpha_y.addcmul_(pull, step_y)


def _rod(lens: Lens, x: torch.Tensor, y: torch.Tensor) -> Pair:
    """Return the deflection of a uniform rod through the centre.

    The sum over its points, integrated: conj(alpha) = theta_E^2 / (L u) ln((zeta + L/2) / (zeta - L/2))
    with zeta = z / u, u = exp(i angle); the logarithm's argument is minus the angle that the rod subtends.
    """
    half = lens.vortex_length / 2
    along, across = _turn(x, y, lens.vortex_angle)
    near, far = along - half, along + half
    square = across * across
    strength = lens.vortex_theta_E**2 / lens.vortex_length
    subtended = torch.atan2(across.mul_(lens.vortex_length), near * far + square).mul_(strength)
    soft = square.add_(SOFTENING**2)
    ratio = far.mul_(far).add_(soft).div_(near.mul_(near).add_(soft))
    return _turn(ratio.log_().mul_(strength / 2), subtended, -lens.vortex_angle)


def sersic(lens: Lens, beta_x: torch.Tensor, beta_y: torch.Tensor) -> torch.Tensor:
    """Return the source's surface brightness [counts/s/arcsec^2] at source-plane points [arcsec].

    The exponent's constant is Capaccioli's (1989) b_n = 1.9992 n - 0.3271, as in lenstronomy.
    """
    q, angle = _axis_ratio(lens.source_e1, lens.source_e2)
    along, across = _turn(beta_x - lens.source_x, beta_y - lens.source_y, angle)
    squared = along.mul_(along).mul_(q).addcmul_(across, across, value=1 / q)
    radius = squared.sqrt_().clamp_(min=SOURCE_CORE).mul_(1 / lens.source_R)
    b_n = 1.9992 * lens.source_n - 0.3271
    power = radius if lens.source_n == 1 else radius.pow_(1 / lens.source_n)
    return power.mul_(-b_n).add_(b_n).exp_().mul_(lens.source_amp)


def blur(image: torch.Tensor, fwhm_px: float) -> torch.Tensor:
    """Return *image* (H, W) convolved with a round Gaussian [px], edges repeated as by scipy's `nearest`."""
    sigma = fwhm_px / math.sqrt(8 * math.log(2))
    reach = int(PSF_REACH * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (0, 1):
        size = image.shape[axis]
        pad = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
        wide = functional.pad(image[None], pad, mode="replicate")[0]
        image = wide.narrow(axis, reach, size) * float(weights[0])
        for step in range(1, reach + 1):
            both = wide.narrow(axis, reach - step, size) + wide.narrow(axis, reach + step, size)
            image.add_(both, alpha=float(weights[step]))
    return image


def _axis_ratio(e1: float, e2: float) -> tuple[float, float]:
    """Return axis ratio and position angle [rad] of the ellipticity: e = (1 - q) / (1 + q) exp(2 i angle)."""
    e = math.hypot(e1, e2)
    return (1 - e) / (1 + e), math.atan2(e2, e1) / 2


def _turn(x: torch.Tensor, y: torch.Tensor, angle: float) -> Pair:
    """Return the coordinates along and across a direction at *angle* [rad] from the x axis."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.add(c * x, y, alpha=s), torch.add(c * y, x, alpha=-s)
