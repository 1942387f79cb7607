"""Noiseless images of lenses: deflections of their parts, a Sersic source behind them, the PSF.

Signs and normalisations are lenstronomy's, against which the tests hold every formula. The code takes
a batch, on any device. On a CPU the caller gives one lens at a time on purpose: in a batch the last
bits of `exp` or `atan2` depend on where an image falls in the processor's vectors, and an image must
depend on its own parameters alone. It costs little: 22,500 pixels stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

SOFTENING = 1e-6  # [arcsec] radius within which point masses and rod ends are blunted: keeps all finite
CORE = 1e-4  # [arcsec] radius within which a Sersic profile is flat, as in lenstronomy
PSF_REACH = 3.0  # [sigma] at which the PSF is cut off
ROUNDEST = 1 - 1e-8  # axis ratio of a sphere: at 1 the formula divides by zero, and this is 1e-8 from it
NOWHERE = (1e3, 1e3, 1e-9)  # a point mass without effect, which evens the numbers of subhalos in a batch

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lens:
    """The true parameters of one image; angles on the sky in arcsec unless another unit is stated.

    Attributes:
        lens_class: ``no``, ``sphere`` (subhalos) or ``vort`` (a vortex).
        theta_E: Einstein radius of the main lens, an isothermal ellipsoid in the middle.
        e1: Ellipticity of the main lens; source and lens light have their own.
        gamma1: External shear.
        source_R: Half-light radius, product average of the two axes.
        source_n: Sersic index.
        source_amp: Surface brightness at the half-light radius [counts/s/arcsec^2].
        light_R: The same of the lens' own light, in the middle; its `light_amp` is 0 for a dark lens.
        subhalos: (K, 3) float64: x, y and Einstein radius of each point mass.
        subhalo_mass: Their total mass [Msun].
        vortex_theta_E: Einstein radius of a point with the vortex' mass; 0 without a vortex.
        vortex_length: Full length of the rod; 0 without a vortex.
        vortex_angle: Its position angle from the x axis [rad].
        vortex_mass: Its mass [Msun].
        log10_axion_mass: log10 of the axion mass [eV] that sets the length; NaN where none does.
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
    light_R: float = 1.0  # noqa: N815  the field's symbol
    light_n: float = 1.0
    light_e1: float = 0.0
    light_e2: float = 0.0
    light_amp: float = 0.0
    subhalos: NDArray[np.float64]
    subhalo_mass: float = 0.0
    vortex_theta_E: float = 0.0  # noqa: N815  the field's symbol
    vortex_length: float = 0.0
    vortex_angle: float = 0.0
    vortex_mass: float = 0.0
    log10_axion_mass: float = math.nan
    mass_fraction: float = 0.0


class Batch:
    """Parameters of several lenses as columns; float64 until they are sent to tensors.

    Args:
        lenses: At least one.
        like: A tensor of the dtype and on the device of the images.
    """

    def __init__(self, lenses: Sequence[Lens], like: torch.Tensor) -> None:
        self.lenses, self.dtype, self._device = lenses, like.dtype, like.device

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return (B,) values of one field."""
        return np.array([getattr(lens, name) for lens in self.lenses])

    def send(self, *columns: NDArray[np.float64]) -> tuple[torch.Tensor, ...]:
        """Return each of *columns* (B,) as a (B, 1, 1) tensor beside the images; as a number if B is 1.

        Torch takes both alike, and the number at a third less time for the whole image.
        """
        if len(self.lenses) == 1:
            return tuple(float(column[0]) for column in columns)  # type: ignore[misc]  # as a scalar tensor does
        together = torch.from_numpy(np.stack(columns))
        return together.to(self._device, self.dtype)[:, :, None, None].unbind()


def render(
    lenses: Sequence[Lens],
    *,
    side: int,
    pixel_scale: float,
    psf_fwhm: float,
    subgrid: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> torch.Tensor:
    """Return the noiseless images of *lenses*.

    Args:
        lenses: What to draw; one at a time where the bits must not depend on the company.
        side: Height and width [px].
        pixel_scale: Side of a pixel [arcsec].
        psf_fwhm: Full width at half maximum of the Gaussian PSF [arcsec].
        subgrid: Rays along each side of a pixel, averaged before the PSF.
        dtype: float32, or float64 for comparisons.
        device: Where to draw.

    Returns:
        (B, side, side) [counts/s/px]; rows run along y, columns along x.
    """
    fine, step = side * subgrid, pixel_scale / subgrid
    axis = (torch.arange(fine, dtype=torch.float64, device=device) - (fine - 1) / 2) * step
    batch = Batch(lenses, axis.to(dtype))
    alpha_x, alpha_y = deflection(batch, axis[None, None, :], axis[None, :, None])
    x, y = axis[None, None, :].to(dtype), axis[None, :, None].to(dtype)
    stretch_x, stretch_y, cross, source_x, source_y = batch.send(
        1 - batch["gamma1"], 1 + batch["gamma1"], batch["gamma2"], batch["source_x"], batch["source_y"]
    )
    # Where the rays meet the source plane, seen from the middle of the source.
    beta_x = _add(stretch_x * x - source_x, y, -cross).sub_(alpha_x)
    beta_y = _add(stretch_y * y - source_y, x, -cross).sub_(alpha_y)
    image = sersic(batch, "source", beta_x, beta_y, scale=pixel_scale**2)
    if batch["light_amp"].any():
        image += sersic(batch, "light", x, y, scale=pixel_scale**2)
    if subgrid > 1:
        image = functional.avg_pool2d(image[:, None], subgrid)[:, 0]
    return blur(image, psf_fwhm / pixel_scale)


def deflection(batch: Batch, x: torch.Tensor, y: torch.Tensor) -> Pair:
    """Return the deflection [arcsec] by main lens, subhalos and vortex, without the shear.

    Args:
        batch: B lenses.
        x: (1, 1, W) float64, columns of the image plane [arcsec].
        y: (1, H, 1) float64, rows [arcsec].

    Returns:
        Two (B, H, W) tensors of the batch's dtype, along x and along y.
    """
    near_x, near_y = x.to(batch.dtype), y.to(batch.dtype)
    alpha_x, alpha_y = _ellipsoid(batch, near_x, near_y)
    if any(len(lens.subhalos) for lens in batch.lenses):
        _add_subhalos(alpha_x, alpha_y, batch, x, y)
    if batch["vortex_length"].any():
        rod_x, rod_y = _rod(batch, near_x, near_y)
        alpha_x += rod_x
        alpha_y += rod_y
    return alpha_x, alpha_y


def _ellipsoid(batch: Batch, x: torch.Tensor, y: torch.Tensor) -> Pair:
    """Return the deflection of a singular isothermal ellipsoid: Keeton 2001, astro-ph/0102341, no core."""
    axis_ratio, angle = _axis_ratio(batch["e1"], batch["e2"])
    axis_ratio = np.minimum(axis_ratio, ROUNDEST)
    flattening = np.sqrt(1 - axis_ratio**2)
    strength = batch["theta_E"] * np.sqrt(axis_ratio) / flattening
    cos, sin, squared, f = batch.send(np.cos(angle), np.sin(angle), axis_ratio**2, flattening)
    back = batch.send(strength * np.cos(angle), -strength * np.sin(angle))
    along, across = _turn(x, y, cos, sin)
    psi = (along * along).mul_(squared).addcmul_(across, across).sqrt_().clamp_(min=SOFTENING)
    # atan2(a, b) is atan(a / b) for b > 0, at half the time.
    pull_along = torch.atan2(along.mul_(f), psi)
    pull_across = across.mul_(f).div_(psi).atanh_()
    return _turn(pull_along, pull_across, *back)


def _add_subhalos(alpha_x: torch.Tensor, alpha_y: torch.Tensor, batch: Batch, x: torch.Tensor, y: torch.Tensor) -> None:
    """Add theta_E^2 d / |d|^2 for each point mass, d being the way from it, in place."""
    most = max(len(lens.subhalos) for lens in batch.lenses)
    padded = np.full((len(batch.lenses), most, 3), NOWHERE)
    for row, lens in zip(padded, batch.lenses, strict=True):
        row[: len(lens.subhalos)] = lens.subhalos
    # (3, K, B, 1, 1): the subtraction is done in float64, where a ray may pass close by.
    px, py, theta_e = torch.from_numpy(padded).to(x.device).permute(2, 1, 0)[..., None, None].unbind()
    dx, dy = x - px, y - py
    # 1 / (dx^2/te^2 + dy^2/te^2): all but the sum and the reciprocal is work on single rows.
    squares = ((dx * dx + SOFTENING**2) / theta_e**2, dy * dy / theta_e**2)
    rows = [part.to(alpha_x.dtype).unbind() for part in (dx, dy, *squares)]
    pull = torch.empty_like(alpha_x)
    for step_x, step_y, square_x, square_y in zip(*rows, strict=True):
        torch.add(square_x, square_y, out=pull).reciprocal_()
        alpha_x.addcmul_(pull, step_x)
        alpha_y.addcmul_(pull, step_y)


def _rod(batch: Batch, x: torch.Tensor, y: torch.Tensor) -> Pair:
    """Return the deflection of uniform rods through the centre; none for a lens without one.

    The sum over its points, integrated: conj(alpha) = theta_E^2 / (L u) ln((zeta + L/2) / (zeta - L/2))
    with zeta = z / u, u = exp(i angle); the logarithm's argument is minus the angle that the rod subtends.
    """
    size, angle = batch["vortex_length"], batch["vortex_angle"]
    size = np.where(size > 0, size, 1.0)  # its strength is zero where there is no rod
    strength = batch["vortex_theta_E"] ** 2 / size
    cos, sin, length = batch.send(np.cos(angle), np.sin(angle), size)
    back = batch.send(strength * np.cos(angle), -strength * np.sin(angle))
    along, across = _turn(x, y, cos, sin)
    near, far = along - length / 2, along + length / 2
    square = across * across
    subtended = torch.atan2(across.mul_(length), near * far + square)
    soft = square.add_(SOFTENING**2)
    ratio = far.mul_(far).add_(soft).div_(near.mul_(near).add_(soft))
    return _turn(ratio.sqrt_().log_(), subtended, *back)


def sersic(batch: Batch, name: str, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return the surface brightness [counts/s/arcsec^2] of a Sersic profile at points [arcsec], times *scale*.

    The exponent's constant is Capaccioli's (1989) b_n = 1.9992 n - 0.3271, as in lenstronomy.

    Args:
        batch: B lenses.
        name: ``source`` or ``light``, the beginning of the fields' names.
        x: Points from the profile's centre, of a shape that broadcasts with *y* to (B, H, W).
        y: Points.
        scale: Area of a pixel [arcsec^2], for counts/s/px.
    """
    index = batch[f"{name}_n"]
    b_n = 1.9992 * index - 0.3271
    q, angle = _axis_ratio(batch[f"{name}_e1"], batch[f"{name}_e2"])
    # (r/R)^(1/n) = ((along^2 + across^2/q^2) q/R^2)^(1/2n): all factors in one number.
    power = 1 / index
    bright = np.log(np.maximum(batch[f"{name}_amp"] * scale, np.finfo(np.float32).tiny))
    cos, sin, stretch, core, root, slope, zero = batch.send(
        np.cos(angle),
        np.sin(angle),
        1 / q**2,
        CORE / np.sqrt(q),
        power,
        -b_n * (np.sqrt(q) / batch[f"{name}_R"]) ** power,
        b_n + bright,
    )
    along, across = _turn(x, y, cos, sin)
    radius = _add(along.mul_(along), across.mul_(across), stretch).sqrt_().clamp_(min=core)
    if (index != 1).any():
        radius = radius.pow_(root)
    return radius.mul_(slope).add_(zero).exp_()


def blur(images: torch.Tensor, fwhm_px: float) -> torch.Tensor:
    """Return *images* (B, H, W) convolved with a round Gaussian [px], edges repeated as by scipy's `nearest`."""
    sigma = fwhm_px / math.sqrt(8 * math.log(2))
    reach = int(PSF_REACH * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (1, 2):
        size = images.shape[axis]
        pad = (0, 0, reach, reach) if axis == 1 else (reach, reach, 0, 0)
        wide = functional.pad(images, pad, mode="replicate")
        images = wide.narrow(axis, reach, size) * float(weights[0])
        for step in range(1, reach + 1):
            both = wide.narrow(axis, reach - step, size) + wide.narrow(axis, reach + step, size)
            images.add_(both, alpha=float(weights[step]))
    return images


def _axis_ratio(e1: NDArray[np.float64], e2: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return axis ratio and position angle [rad] of the ellipticity: e = (1 - q) / (1 + q) exp(2 i angle)."""
    e = np.hypot(e1, e2)
    return (1 - e) / (1 + e), np.arctan2(e2, e1) / 2


def _turn(x: torch.Tensor, y: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Pair:
    """Return the coordinates along and across a direction, given its cosine and sine."""
    return _add(x * cos, y, sin), _add(y * cos, x, -sin)


def _add(term: torch.Tensor, other: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """Return ``term + other * factor`` in one pass over the plane."""
    if isinstance(factor, float):
        return torch.add(term, other, alpha=factor)
    return torch.addcmul(term, other, factor)
