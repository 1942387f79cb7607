"""Every formula of the renderer against lenstronomy, quadrature or scipy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, ndimage

from lensing_models.data.lens import PSF_REACH, Batch, Lens, blur, deflection, render
from lensing_models.data.sky import SKIES

REFERENCES = sorted((Path(__file__).parent / "reference").glob("*.npz"))
SIDE, PIXEL_SCALE = 150, 0.05
DTYPES = (torch.float32, torch.float64)


def load_reference(path: Path) -> tuple[Lens, dict[str, float | int], np.ndarray]:
    """Return a lens, how it is seen, and the image that lenstronomy made of it (`make_reference`)."""
    with np.load(path) as file:
        facts = {name: file[name] if file[name].ndim else file[name].item() for name in file.files}
    image, seen = facts.pop("image"), {name: facts.pop(name) for name in ("psf_fwhm", "subgrid")}
    return Lens(**facts), seen, image


def draw(
    lens: Lens, *, side: int = SIDE, psf_fwhm: float = 0.087, subgrid: int = 1, dtype: torch.dtype
) -> torch.Tensor:
    """Return the image (side, side) of one lens."""
    return render([lens], side=side, pixel_scale=PIXEL_SCALE, psf_fwhm=psf_fwhm, subgrid=subgrid, dtype=dtype)[0]


def plain_lens(**changes: object) -> Lens:
    """Return a lens without a main lens, unless *changes* give it one."""
    source = {"source_x": 0.1, "source_y": -0.2, "source_R": 0.25, "source_n": 1.0, "source_e1": -0.1, "source_e2": 0.1}
    facts = {"lens_class": "no", "theta_E": 0.0, "e1": 0.1, "e2": 0.0, "gamma1": 0.05, "gamma2": 0.0, **source}
    facts |= {"source_amp": 20.0, "subhalos": np.empty((0, 3))}
    return Lens(**{**facts, **changes})


def distance_from_rod(lens: Lens) -> np.ndarray:
    """Return each pixel's distance [arcsec] from the vortex."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_SCALE
    turned = (axis[None, :] + 1j * axis[:, None]) * np.exp(-1j * lens.vortex_angle)
    half = lens.vortex_length / 2
    return np.abs(turned - np.clip(turned.real, -half, half))


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_an_image_is_lenstronomys(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    lens, seen, expected = load_reference(path)

    image = draw(lens, **seen, dtype=dtype)

    # The oracle's rod is a row of points: beside it, and as far as the PSF carries that, it is none.
    compared = distance_from_rod(lens) > 0.5 if lens.vortex_length else np.full(expected.shape, True)
    assert np.abs(image.numpy() - expected)[compared].max() < tolerance * expected.max()


def test_references_hold_every_class_of_every_sky_and_of_one_where_all_varies() -> None:
    expected = {f"{sky}_{lens_class}" for sky in (*SKIES, "varied") for lens_class in ("no", "sphere", "vort")}

    assert {path.stem for path in REFERENCES} == expected


def test_a_batch_of_unlike_lenses_gives_the_images_of_each() -> None:
    lenses = [load_reference(path)[0] for path in REFERENCES]
    seen = {"side": 40, "pixel_scale": 0.15, "psf_fwhm": 0.3, "dtype": torch.float64}

    together = render(lenses, **seen)

    alone = torch.cat([render([lens], **seen) for lens in lenses])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(
    length=st.floats(0.06, 6.0),
    angle=st.floats(0.0, 2 * math.pi),
    x=st.floats(-4.0, 4.0),
    offset=st.floats(0.02, 4.0),
    side=st.sampled_from([-1, 1]),
)
def test_a_rods_deflection_is_the_integral_over_its_points(
    length: float, angle: float, x: float, offset: float, side: int
) -> None:
    rod = plain_lens(vortex_theta_E=0.222, vortex_length=length, vortex_angle=angle)
    place = complex(x, side * offset) * complex(math.cos(angle), math.sin(angle))  # never on the rod

    def pull(at: float, part: str) -> float:
        way = complex(x - at, side * offset)
        return float(getattr(way / abs(way) ** 2, part)) * rod.vortex_theta_E**2 / length

    half = length / 2
    nearest = [x] if abs(x) < half else None
    along, across = (
        integrate.quad(pull, -half, half, args=(part,), points=nearest, limit=200, epsabs=1e-11)[0]
        for part in ("real", "imag")
    )
    expected = complex(along, across) * complex(math.cos(angle), math.sin(angle))

    point = (torch.tensor([[[value]]], dtype=torch.float64) for value in (place.real, place.imag))
    alpha_x, alpha_y = deflection(Batch([rod], torch.empty(0, dtype=torch.float64)), *point)

    assert complex(alpha_x.item(), alpha_y.item()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_point_mass_on_a_pixels_centre_is_finite(dtype: torch.dtype) -> None:
    on_pixel = (np.array([80, 100]) - (SIDE - 1) / 2) * PIXEL_SCALE
    lens = plain_lens(theta_E=1.28, subhalos=np.array([[*on_pixel, 0.128]]))

    image = draw(lens, dtype=dtype)

    assert image.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("angle", [0.0, math.pi / 2])
def test_a_rod_that_runs_and_ends_on_pixel_centres_is_finite(dtype: torch.dtype, angle: float) -> None:
    lens = plain_lens(theta_E=1.28, vortex_theta_E=0.222, vortex_length=10 * PIXEL_SCALE, vortex_angle=angle)

    # An odd number of pixels puts a row and a column of centres on the axes, and so on the rod.
    image = draw(lens, side=151, dtype=dtype)

    assert image.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_round_lens_on_a_pixels_centre_is_finite(dtype: torch.dtype) -> None:
    lens = plain_lens(theta_E=1.28, e1=0.0)

    image = draw(lens, side=151, dtype=dtype)

    assert image.isfinite().all()


def test_the_image_does_not_depend_on_the_number_of_threads() -> None:
    lens, seen, _ = load_reference(REFERENCES[1])
    threads = torch.get_num_threads()
    images = []

    for number in (1, 3):
        torch.set_num_threads(number)
        images.append(draw(lens, **seen, dtype=torch.float32))
    torch.set_num_threads(threads)

    assert torch.equal(*images)


@pytest.mark.parametrize("fwhm", [0.5, 1.74, 4.7])
def test_blur_is_scipys_gaussian_filter(fwhm: float) -> None:
    image = np.random.default_rng(0).random((20, 31))
    sigma = fwhm / math.sqrt(8 * math.log(2))

    blurred = blur(torch.from_numpy(image)[None], fwhm)[0]

    expected = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=PSF_REACH)
    np.testing.assert_allclose(blurred.numpy(), expected, rtol=1e-13)
