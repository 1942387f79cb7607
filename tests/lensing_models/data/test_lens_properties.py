"""What holds for every lens, whatever its parameters: finite, bounded, and turning with the lens."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from lensing_models.data.lens import Lens, render

SIDE, PIXEL_SCALE = 60, 0.1
HALF_TURN = st.floats(0, 2 * math.pi)
ELLIPTICITY = st.floats(-0.3, 0.3)
WITHIN = st.floats(-1.5, 1.5)
SUBHALOS = st.lists(st.tuples(WITHIN, WITHIN, st.floats(1e-3, 0.2)), max_size=4)


@st.composite
def lenses(draw: st.DrawFn) -> Lens:
    """Return any lens within the ranges of the skies, and somewhat beyond."""
    rows = draw(SUBHALOS)
    return Lens(
        lens_class="no",
        theta_E=draw(st.floats(0, 2)),
        subhalos=np.array(rows).reshape(len(rows), 3),
        vortex_theta_E=draw(st.floats(0, 0.4)),
        vortex_length=draw(st.sampled_from([0.0, 0.06, 1.0, 6.0])),
        vortex_angle=draw(HALF_TURN),
        **{name: draw(ELLIPTICITY) for name in ("e1", "e2", "gamma1", "gamma2", "source_e1", "source_e2")},
        **{name: draw(WITHIN) for name in ("source_x", "source_y")},
        source_R=draw(st.floats(0.1, 1.0)),
        source_n=draw(st.sampled_from([0.5, 1.0, 1.5, 2.5, 4.0])),
        source_amp=draw(st.floats(0.1, 100)),
        light_amp=draw(st.sampled_from([0.0, 50.0])),
    )


def image_of(lens: Lens, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the noiseless image (SIDE, SIDE)."""
    return render([lens], side=SIDE, pixel_scale=PIXEL_SCALE, psf_fwhm=0.2, dtype=dtype)[0]


def largest_brightness(amp: float, n: float) -> float:
    """Return the brightness in the middle of a Sersic profile [counts/s/arcsec^2]."""
    return amp * math.exp(1.9992 * n - 0.3271)


@settings(max_examples=60, deadline=None)
@given(lens=lenses())
def test_a_pixel_is_finite_not_negative_and_never_brighter_than_what_shines(lens: Lens) -> None:
    image = image_of(lens)

    # Lensing conserves surface brightness, and the PSF only averages.
    most = largest_brightness(lens.source_amp, lens.source_n) + largest_brightness(lens.light_amp, lens.light_n)
    assert image.isfinite().all()
    assert image.min() >= 0
    assert image.max() <= most * PIXEL_SCALE**2 * (1 + 1e-5)


@settings(max_examples=40, deadline=None)
@given(lens=lenses())
def test_turning_the_lens_turns_the_image(lens: Lens) -> None:
    turned = dataclasses.replace(
        lens,
        **{name: -getattr(lens, name) for name in ("e1", "e2", "gamma1", "gamma2", "source_e1", "source_e2")},
        source_x=-lens.source_y,
        source_y=lens.source_x,
        subhalos=lens.subhalos[:, [1, 0, 2]] * [-1, 1, 1],
        vortex_angle=lens.vortex_angle + math.pi / 2,
    )

    expected = torch.rot90(image_of(lens, torch.float64), -1)

    # On a source's cusp a rounding of the deflection moves the brightness most: 1e-6 of the peak.
    error = (image_of(turned, torch.float64) - expected).abs().max()
    assert error <= 1e-6 * expected.max()


@settings(max_examples=20, deadline=None)
@given(n=st.floats(0.6, 2.0), e1=ELLIPTICITY, e2=ELLIPTICITY, radius=st.floats(0.2, 0.4))
def test_without_a_lens_the_flux_is_the_sources(n: float, e1: float, e2: float, radius: float) -> None:
    facts = dict.fromkeys(("theta_E", "e1", "e2", "gamma1", "gamma2", "source_x", "source_y"), 0.0)
    lens = Lens(
        lens_class="no",
        **facts,
        source_R=radius,
        source_n=n,
        source_e1=e1,
        source_e2=e2,
        source_amp=1.0,
        subhalos=np.empty((0, 3)),
    )
    # Graham and Driver 2005, eq. 4, for b_n as we have it.
    b_n = 1.9992 * n - 0.3271
    flux = 2 * math.pi * n * radius**2 * math.exp(b_n) * b_n ** (-2 * n) * special.gamma(2 * n)

    image = render([lens], side=150, pixel_scale=0.1, psf_fwhm=0.2, subgrid=3, dtype=torch.float64)

    # The frame cuts the wings, the grid the cusp.
    assert abs(float(image.sum()) / flux - 1) < 0.01
