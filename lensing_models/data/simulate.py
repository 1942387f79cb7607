"""Data sets of simulated lenses and galaxies: the same bytes for any number of workers."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lensing_models.data.draw import LENS_CLASSES, draw_lens, expose, image_stream
from lensing_models.data.galaxies import galaxy_source
from lensing_models.data.galaxy_physics import GALAXIES
from lensing_models.data.lens import Lens, render
from lensing_models.data.manifest import Recipe, SplitName
from lensing_models.data.sky import SKIES, Sky
from lensing_models.data.source import CatalogRow, Source
from lensing_models.data.store import Store, open_store, write_store
from lensing_models.preset import Preset, Split
from lensing_models.registry import explain_unknown
from lensing_models.specs import TaskSpec

SIMULATOR_VERSION = 1  # raise it when an image of the same recipe changes
DEFAULT_SKY = "model_i"
CHUNK_IMAGES = 24  # what a worker holds in memory, and how often the progress moves

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Consecutive images of one split, and the row of ``images.npy`` where they start."""

    split: SplitName
    start: int
    stop: int
    row: int


def simulate_dataset(
    task: TaskSpec,
    split: Split,
    folder: Path,
    *,
    sky: str | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Store:
    """Simulate the data of *task* and return their store at *folder*.

    Args:
        task: Says what the images show and what their label is.
        split: Numbers of images.
        folder: Where to; it must not exist.
        sky: Name of a source in `SOURCES`; by default that of `default_sky`.
        seed: Seed of the data set.
        workers: Processes; the bytes do not depend on it. More than one are spawned, so a script
            that asks for them needs the usual ``if __name__ == "__main__"``.
        progress: Told of every finished chunk.

    Raises:
        FileExistsError: If *folder* exists.
        LookupError: If *sky* is unknown.
        ValueError: If the source has no images for *task*, or a number makes no sense.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    recipe = make_recipe(task, split, sky=sky, seed=seed)
    source = SOURCES[recipe.sky]
    chunks = list(_chunks(recipe))

    def fill(path: Path) -> pd.DataFrame:
        rows: list[CatalogRow] = []
        for made in _map(partial(_fill_chunk, task, source, seed, path), chunks, workers):
            rows += made
            if progress is not None:
                progress(len(rows), chunks[-1].row + chunks[-1].stop - chunks[-1].start)
        return pd.DataFrame(rows)

    about = f"Simulated images, not observations. Sky: {source.source}. {source.limits} Task after: {task.source}."
    return write_store(folder, recipe, fill, about=about)


def ensure_dataset(
    task: TaskSpec, preset: Preset, cache: Path, *, seed: int = 0, workers: int = 1, progress: Progress | None = None
) -> Store:
    """Return the data of *task* at the size of *preset* from *cache*, made there if they are not.

    Data in the cache are trusted after the cheap check of `open_store`; damaged ones are made again.
    """
    split = preset.split_for(task.name)
    recipe = make_recipe(task, split, seed=seed)
    folder = cache / f"{task.name}-{recipe.sky}-{recipe.digest[:12]}"
    if folder.exists():
        try:
            return _expect(open_store(folder), recipe)
        except ValueError as error:
            log.warning("making the data again: %s", error)
            shutil.rmtree(folder)
    try:
        return simulate_dataset(task, split, folder, seed=seed, workers=workers, progress=progress)
    except FileExistsError:
        return _expect(open_store(folder), recipe)  # another process was faster


def simulate_images(
    task: TaskSpec, source: Source, split: SplitName, indices: Sequence[int], *, seed: int = 0
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return (N, C, H, W) counts and catalogue rows of the images *indices* of a split.

    An image depends on (source, seed, split, index) and its class alone. The class of a lens with
    index i is the i-th of the task's, taken in turn; a galaxy's is drawn from the image's own stream.
    """
    images = np.empty((len(indices), *task.image_shape), np.uint16)
    rows: list[CatalogRow] = []
    with _one_thread():
        for place, index in enumerate(indices):
            images[place], row = source.draw(task, index, image_stream(seed, split, index))
            rows.append({"split": split, "index": index, **row})
    return images, rows


def lens_source(sky: Sky) -> Source:
    """Return the source of lenses under *sky*."""
    return Source(
        name=sky.name,
        digest=sky.digest,
        simulator=SIMULATOR_VERSION,
        source=sky.source,
        limits=sky.limits,
        refuse=_refuse,
        draw=partial(_draw_lens_image, sky),
    )


def render_for(task: TaskSpec, sky: Sky, lens: Lens, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the noiseless image (H, W) [counts/s/px] of *lens* on the grid of *task*."""
    return render(
        lens, side=task.image_shape[1], pixel_scale=task.pixel_scale_arcsec, psf_fwhm=sky.psf_fwhm, dtype=dtype
    )


def default_sky(task: TaskSpec) -> str:
    """Return the name of the source that *task* is simulated from where none is named."""
    return DEFAULT_SKY if task.lens_classes else GALAXIES.name


def make_recipe(task: TaskSpec, split: Split, *, sky: str | None = None, seed: int = 0) -> Recipe:
    """Return the identity of the data; raise as `simulate_dataset` does where there can be none."""
    sky = default_sky(task) if sky is None else sky
    if sky not in SOURCES:
        raise LookupError(explain_unknown("sky", sky, SOURCES))
    if refusal := SOURCES[sky].refuse(task):
        raise ValueError(f"sky {sky!r}: {refusal}")
    return Recipe(
        task=task.name,
        sky=sky,
        sky_digest=SOURCES[sky].digest,
        seed=seed,
        sizes={"train": split.train, "validation": split.validation, "test": split.test},
        simulator=SOURCES[sky].simulator,
        image_shape=task.image_shape,
        pixel_scale_arcsec=task.pixel_scale_arcsec,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch on one thread: an image is too small for more, which cost six times the processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _expect(store: Store, recipe: Recipe) -> Store:
    """Return *store* if it was made from *recipe*."""
    if store.recipe_digest != recipe.digest:
        raise ValueError(f"{store.folder} holds other data than its name says")
    return store


def _chunks(recipe: Recipe) -> Iterator[_Chunk]:
    """Yield the work in the order of the rows."""
    row = 0
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    for split in names:
        for start in range(0, recipe.sizes[split], CHUNK_IMAGES):
            stop = min(start + CHUNK_IMAGES, recipe.sizes[split])
            yield _Chunk(split=split, start=start, stop=stop, row=row)
            row += stop - start


def _map(
    work: Callable[[_Chunk], list[CatalogRow]], chunks: Sequence[_Chunk], workers: int
) -> Iterator[list[CatalogRow]]:
    """Yield the results in the order of *chunks*, from this process or from *workers* others."""
    if workers == 1:
        yield from map(work, chunks)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, chunks)


def _fill_chunk(task: TaskSpec, source: Source, seed: int, path: Path, chunk: _Chunk) -> list[CatalogRow]:
    """Write the images of *chunk* into the array at *path* and return their catalogue rows."""
    images, rows = simulate_images(task, source, chunk.split, range(chunk.start, chunk.stop), seed=seed)
    stored = np.lib.format.open_memmap(path, mode="r+")
    stored[chunk.row : chunk.row + len(images)] = images
    stored.flush()
    return rows


def _refuse(task: TaskSpec) -> str | None:
    channels, height, width = task.image_shape
    if task.lens_classes and set(task.lens_classes) <= set(LENS_CLASSES) and channels == 1 and height == width:
        return None
    return f"task {task.name!r} is not about single-band square images of {', '.join(LENS_CLASSES)}"


def _draw_lens_image(
    sky: Sky, task: TaskSpec, index: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], CatalogRow]:
    """Return one image and its row, as `Source.draw`."""
    lens = draw_lens(sky, task.lens_classes[index % len(task.lens_classes)], rng)
    return expose(render_for(task, sky, lens).numpy(), lens, rng)[None], _catalog_row(task, lens)


def _catalog_row(task: TaskSpec, lens: Lens) -> CatalogRow:
    """Return label and true parameters of one image."""
    truth: CatalogRow = {
        name.name: getattr(lens, name.name) for name in fields(lens) if name.name not in ("lens_class", "subhalos")
    }
    truth["n_subhalos"] = len(lens.subhalos)
    label = task.classes.index(lens.lens_class) if task.classes else truth[task.targets[0].name]
    return {"label": label, "class": lens.lens_class, **truth}


SOURCES: Mapping[str, Source] = {row.name: row for row in (*map(lens_source, SKIES.values()), galaxy_source(GALAXIES))}
