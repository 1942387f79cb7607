"""Images of lenses under a sky: drawn, rendered and exposed, one by one or on a GPU together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from lensing_models.data.draw import LENS_CLASSES, draw_lens
from lensing_models.data.exposure import Exposure, expose
from lensing_models.data.law import is_fixed
from lensing_models.data.lens import Lens, render
from lensing_models.data.sky import Sky
from lensing_models.data.source import CatalogRow, Source
from lensing_models.specs import TaskSpec

SIMULATOR_VERSION = 3  # raise it when an image of the same recipe changes
CUDA_BATCH = 256  # images that share a random stream of the noise on a GPU


def lens_source(sky: Sky) -> Source:
    """Return the source of lenses under *sky*.

    The class of the image with index i is the i-th of the task's lens classes, taken in turn.
    """
    return Source(
        name=sky.name,
        digest=sky.digest,
        simulator=SIMULATOR_VERSION,
        origin=sky.origin,
        limits=sky.limits,
        refuse=partial(_refuse, sky),
        batch=_batch_size,
        make=partial(_make_images, sky),
    )


def render_for(
    task: TaskSpec, sky: Sky, lenses: Sequence[Lens], *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> torch.Tensor:
    """Return the noiseless images (B, H, W) [counts/s/px] of *lenses* on the grid of *task*."""
    return render(
        lenses,
        side=task.image_shape[1],
        pixel_scale=task.pixel_scale_arcsec,
        psf_fwhm=sky.psf_fwhm,
        subgrid=sky.subgrid,
        dtype=dtype,
        device=device,
    )


def _refuse(sky: Sky, task: TaskSpec) -> str | None:
    channels, height, width = task.image_shape
    if not task.lens_classes or not set(task.lens_classes) <= set(LENS_CLASSES) or channels != 1 or height != width:
        return f"task {task.name!r} is not about single-band square images of {', '.join(LENS_CLASSES)}"
    if task.kind == "regression" and is_fixed(sky.subhalo_mass) and is_fixed(sky.subhalo_count):
        return f"the mass fraction never varies: no data for task {task.name!r}"
    return None


def _batch_size(device: str) -> int:
    return 1 if device == "cpu" else CUDA_BATCH


def _make_images(
    sky: Sky, task: TaskSpec, indices: Sequence[int], streams: Sequence[np.random.Generator], device: str
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return counts and rows as `Source.make`; the noise comes from the first image's stream."""
    classes = [task.lens_classes[index % len(task.lens_classes)] for index in indices]
    lenses = [draw_lens(sky, name, rng) for name, rng in zip(classes, streams, strict=True)]
    # Each stream gives a seed, used or not: what is drawn after it must not depend on the batch.
    seeds = [int(rng.integers(2**63)) for rng in streams]
    generator = torch.Generator(device).manual_seed(seeds[0])
    images = render_for(task, sky, lenses, device=device)
    peaks = images.amax(dim=(1, 2)).tolist()
    exposures = [sky.noise.settle(peak, rng) for peak, rng in zip(peaks, streams, strict=True)]
    counts = expose(images, exposures, generator).cpu().numpy().astype(np.uint16)
    return counts[:, None], [_catalog_row(task, *facts) for facts in zip(lenses, exposures, strict=True)]


def _catalog_row(task: TaskSpec, lens: Lens, exposure: Exposure) -> CatalogRow:
    """Return label and true parameters of one image."""
    truth: CatalogRow = {
        field.name: getattr(facts, field.name)
        for facts in (lens, exposure)
        for field in fields(facts)
        if field.name not in ("lens_class", "subhalos", "shot_twice")
    }
    truth["n_subhalos"] = len(lens.subhalos)
    for name, column in zip(("subhalo_x", "subhalo_y", "subhalo_theta_E"), lens.subhalos.T, strict=True):
        truth[name] = column.tolist()
    label = task.classes.index(lens.lens_class) if task.classes else truth[task.targets[0].name]
    return {"label": label, "class": lens.lens_class, **truth}
