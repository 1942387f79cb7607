"""Freeze noiseless images by lenstronomy, the oracle of `lensing_models.data.lens`.

Run it from the repository's root with the extra ``oracle`` installed:

    python -m tests.lensing_models.data.make_reference
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.util import make_grid_with_coordtransform

from lensing_models.data.draw import LENS_CLASSES, draw_lens
from lensing_models.data.lens import PSF_REACH, Lens
from lensing_models.data.sky import SKIES, Sky, Uniform

FOLDER = Path(__file__).parent / "reference"
SIDE, PIXEL_SCALE = 150, 0.05
#: Gauss-Legendre nodes that stand for the rod, which lenstronomy lacks; exact away from it.
ROD_NODES = 400


def skies() -> Iterator[Sky]:
    """Yield the skies of the references: the real one, and one in which everything varies."""
    model_i = SKIES["model_i"]
    yield model_i
    any_sign = Uniform(-0.2, 0.2)
    yield dataclasses.replace(
        model_i,
        name="varied",
        **dict.fromkeys(("e1", "e2", "gamma1", "gamma2", "source_e1", "source_e2"), any_sign),
        source_R=Uniform(0.2, 0.6),
        source_n=Uniform(0.7, 2.5),
        psf_fwhm=0.2,
        log10_axion_mass=Uniform(-23.8, -23.5),  # rods of 2 to 4 arcsec, which cross the ring
    )


def point_masses(lens: Lens) -> list[tuple[float, float, float]]:
    """Return x, y and Einstein radius of every point: the subhalos, or the rod in pieces."""
    if lens.vortex_length == 0:
        return [tuple(row) for row in lens.subhalos.tolist()]
    nodes, weights = np.polynomial.legendre.leggauss(ROD_NODES)
    along = nodes * lens.vortex_length / 2
    x, y = along * np.cos(lens.vortex_angle), along * np.sin(lens.vortex_angle)
    return list(zip(x, y, lens.vortex_theta_E * np.sqrt(weights / 2), strict=True))


def image_by_lenstronomy(lens: Lens, psf_fwhm: float) -> np.ndarray:
    """Return the noiseless image (SIDE, SIDE) float64 [counts/s/px] of *lens*."""
    points = point_masses(lens)
    grid = make_grid_with_coordtransform(SIDE, PIXEL_SCALE, center_ra=0, center_dec=0, inverse=False)
    _, _, ra, dec, _, _, to_angle, _ = grid
    model = ImageModel(
        PixelGrid(nx=SIDE, ny=SIDE, ra_at_xy_0=ra, dec_at_xy_0=dec, transform_pix2angle=to_angle),
        PSF(psf_type="GAUSSIAN", fwhm=psf_fwhm, truncation=PSF_REACH, pixel_size=PIXEL_SCALE),
        lens_model_class=LensModel(["SIE", "SHEAR", *["POINT_MASS"] * len(points)]),
        source_model_class=LightModel(["SERSIC_ELLIPSE"]),
    )
    main = {"theta_E": lens.theta_E, "e1": lens.e1, "e2": lens.e2, "center_x": 0, "center_y": 0}
    shear = {"gamma1": lens.gamma1, "gamma2": lens.gamma2, "ra_0": 0, "dec_0": 0}
    source = {
        "amp": lens.source_amp,
        "R_sersic": lens.source_R,
        "n_sersic": lens.source_n,
        "e1": lens.source_e1,
        "e2": lens.source_e2,
        "center_x": lens.source_x,
        "center_y": lens.source_y,
    }
    small = [{"theta_E": theta_e, "center_x": x, "center_y": y} for x, y, theta_e in points]
    return model.image(kwargs_lens=[main, shear, *small], kwargs_source=[source], unconvolved=False)


def main() -> None:
    """Write one file a sky and class: the image and every field of its `Lens`."""
    for number, sky in enumerate(skies()):
        for lens_class in LENS_CLASSES:
            lens = draw_lens(sky, lens_class, np.random.default_rng(20 + number))
            facts = {field.name: getattr(lens, field.name) for field in dataclasses.fields(lens)}
            image = image_by_lenstronomy(lens, sky.psf_fwhm)
            np.savez_compressed(
                FOLDER / f"{sky.name}_{lens_class}.npz", image=image, psf_fwhm=np.float64(sky.psf_fwhm), **facts
            )


if __name__ == "__main__":
    main()
