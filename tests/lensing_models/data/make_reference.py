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
from lensing_models.data.law import ANY_ANGLE, Uniform
from lensing_models.data.lens import PSF_REACH, Lens
from lensing_models.data.sky import SKIES, Light, Sky

FOLDER = Path(__file__).parent / "reference"
SIDE, PIXEL_SCALE = 150, 0.05
#: Gauss-Legendre nodes that stand for the rod, which lenstronomy lacks; exact away from it.
ROD_NODES = 400


def skies() -> Iterator[Sky]:
    """Yield the skies of the references: the real ones, and one in which everything varies."""
    yield from SKIES.values()
    any_light = Light(
        amp=Uniform(5.0, 20.0), R=Uniform(0.2, 0.6), n=Uniform(0.7, 2.5), q=Uniform(0.4, 1), angle=ANY_ANGLE
    )
    yield dataclasses.replace(
        SKIES["model_i"],
        name="varied",
        theta_E=Uniform(0.8, 1.6),
        q=Uniform(0.5, 1.0),
        angle=ANY_ANGLE,
        shear=Uniform(0.0, 0.2),
        shear_angle=ANY_ANGLE,
        source=any_light,
        lens_light=any_light,
        psf_fwhm=0.2,
        subgrid=3,
        subhalo_mass=Uniform(1e8, 1e10),
        vortex_length=Uniform(2.0, 4.0),  # rods that cross the ring
    )


def point_masses(lens: Lens, rod_nodes: int = ROD_NODES) -> list[tuple[float, float, float]]:
    """Return x, y and Einstein radius of every point: the subhalos, or the rod in pieces."""
    if lens.vortex_length == 0:
        return [tuple(row) for row in lens.subhalos.tolist()]
    nodes, weights = np.polynomial.legendre.leggauss(rod_nodes)
    along = nodes * lens.vortex_length / 2
    x, y = along * np.cos(lens.vortex_angle), along * np.sin(lens.vortex_angle)
    return list(zip(x, y, lens.vortex_theta_E * np.sqrt(weights / 2), strict=True))


def build_model(points: int, sky: Sky) -> ImageModel:
    """Return lenstronomy's model of a lens with that many point masses."""
    grid = make_grid_with_coordtransform(SIDE, PIXEL_SCALE, center_ra=0, center_dec=0, inverse=False)
    _, _, ra, dec, _, _, to_angle, _ = grid
    return ImageModel(
        PixelGrid(nx=SIDE, ny=SIDE, ra_at_xy_0=ra, dec_at_xy_0=dec, transform_pix2angle=to_angle),
        PSF(psf_type="GAUSSIAN", fwhm=sky.psf_fwhm, truncation=PSF_REACH, pixel_size=PIXEL_SCALE),
        lens_model_class=LensModel(["SIE", "SHEAR", *["POINT_MASS"] * points]),
        source_model_class=LightModel(["SERSIC_ELLIPSE"]),
        lens_light_model_class=LightModel(["SERSIC_ELLIPSE"] if sky.lens_light else []),
        # Rays are averaged over a pixel first, then blurred: the PSF is that of the pixel grid.
        kwargs_numerics={"supersampling_factor": sky.subgrid, "supersampling_convolution": False},
    )


def image_by_lenstronomy(model: ImageModel, lens: Lens, points: list[tuple[float, float, float]]) -> np.ndarray:
    """Return the noiseless image (SIDE, SIDE) float64 [counts/s/px] of *lens* with *points* as its substructure."""
    main = {"theta_E": lens.theta_E, "e1": lens.e1, "e2": lens.e2, "center_x": 0, "center_y": 0}
    shear = {"gamma1": lens.gamma1, "gamma2": lens.gamma2, "ra_0": 0, "dec_0": 0}
    small = [{"theta_E": theta_e, "center_x": x, "center_y": y} for x, y, theta_e in points]
    centre = {"center_x": lens.source_x, "center_y": lens.source_y}
    return model.image(
        kwargs_lens=[main, shear, *small],
        kwargs_source=[{**sersic_facts(lens, "source"), **centre}],
        kwargs_lens_light=[{**sersic_facts(lens, "light"), "center_x": 0, "center_y": 0}] if lens.light_amp else [],
    )


def sersic_facts(lens: Lens, name: str) -> dict[str, float]:
    """Return a profile in lenstronomy's words."""
    words = {"amp": "amp", "R_sersic": "R", "n_sersic": "n", "e1": "e1", "e2": "e2"}
    return {theirs: getattr(lens, f"{name}_{ours}") for theirs, ours in words.items()}


def main() -> None:
    """Write one file a sky and class: the image, how it was seen, and every field of its `Lens`."""
    for number, sky in enumerate(skies()):
        for lens_class in LENS_CLASSES:
            lens = draw_lens(sky, lens_class, np.random.default_rng(20 + number))
            points = point_masses(lens)
            facts = {field.name: getattr(lens, field.name) for field in dataclasses.fields(lens)}
            np.savez_compressed(
                FOLDER / f"{sky.name}_{lens_class}.npz",
                image=image_by_lenstronomy(build_model(len(points), sky), lens, points),
                psf_fwhm=np.float64(sky.psf_fwhm),
                subgrid=np.int64(sky.subgrid),
                **facts,
            )


if __name__ == "__main__":
    main()
