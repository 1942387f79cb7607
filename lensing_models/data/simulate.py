"""Data sets of simulated lenses: the same bytes for any number of workers, and after a kill."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lensing_models.data.draw import LENS_CLASSES, draw_lens, image_stream
from lensing_models.data.exposure import Exposure, expose
from lensing_models.data.law import is_fixed
from lensing_models.data.lens import Lens, render
from lensing_models.data.manifest import Recipe, SplitName
from lensing_models.data.sky import SKIES, Sky
from lensing_models.data.store import Store, open_store, write_store
from lensing_models.preset import Preset, Split
from lensing_models.registry import explain_unknown
from lensing_models.specs import TaskSpec

SIMULATOR_VERSION = 2  # raise it when an image of the same recipe changes
DEFAULT_SKY = "archive_fit"
CHUNK_IMAGES = 24  # what a worker holds in memory, and how often the progress moves
CUDA_BATCH = 256  # images that share a random stream of the noise on a GPU, and are always made together
JOURNAL = "chunks.jsonl"  # catalogue rows of finished chunks, beside the unfinished images

CatalogRow = dict[str, str | int | float]
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
    sky: str = DEFAULT_SKY,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Simulate the data of *task* and return their store at *folder*.

    Args:
        task: Says which lenses there are, in equal parts, and what their label is.
        split: Numbers of images.
        folder: Where to; it must not exist.
        sky: Name of a row of `SKIES`.
        seed: Seed of the data set.
        workers: Processes; the bytes do not depend on it. More than one are spawned, so a script
            that asks for them needs the usual ``if __name__ == "__main__"``.
        device: ``cpu``, or ``cuda``, whose counts may differ from the CPU's in their noise.
        resume: Whether to complete what a killed call with the same recipe has left.
        progress: Told of every finished chunk.

    Raises:
        FileExistsError: If *folder* exists.
        LookupError: If *sky* is unknown.
        ValueError: If *task* is not about lenses, or a number makes no sense.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    recipe = make_recipe(task, split, sky=sky, seed=seed)
    physics = SKIES[sky]
    chunks = list(_chunks(recipe, CHUNK_IMAGES if device == "cpu" else CUDA_BATCH))

    def fill(path: Path) -> pd.DataFrame:
        finished = _read_journal(path.with_name(JOURNAL))
        missing = [chunk for chunk in chunks if chunk.row not in finished]
        done = sum(map(len, finished.values()))
        with path.with_name(JOURNAL).open("a", encoding="utf-8") as journal:
            work = partial(_fill_chunk, task, physics, seed, path, device)
            for chunk, rows in zip(missing, _map(work, missing, workers), strict=True):
                finished[chunk.row] = rows
                journal.write(json.dumps({"row": chunk.row, "catalog": rows}) + "\n")
                journal.flush()
                done += len(rows)
                if progress is not None:
                    progress(done, sum(recipe.sizes.values()))
        path.with_name(JOURNAL).unlink()
        return pd.DataFrame([row for chunk in chunks for row in finished[chunk.row]])

    about = f"Simulated lenses, not observations. Sky: {physics.origin}. {physics.limits} Task after: {task.source}."
    return write_store(folder, recipe, fill, about=about, resume=resume)


def _read_journal(path: Path) -> dict[int, list[CatalogRow]]:
    """Return the catalogue rows of finished chunks by the row where each starts; a torn last line is none."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    entries = [json.loads(line) for line in lines]
    if lines:  # the next line must not be glued to a torn one
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return {entry["row"]: entry["catalog"] for entry in entries}


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
        return simulate_dataset(task, split, folder, seed=seed, workers=workers, resume=True, progress=progress)
    except FileExistsError:
        return _expect(open_store(folder), recipe)  # another process was faster


def simulate_images(
    task: TaskSpec, sky: Sky, split: SplitName, indices: Sequence[int], *, seed: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return (N, 1, H, W) counts and catalogue rows of the images *indices* of a split.

    An image depends on (sky, seed, split, index) and its class alone; the class of index i is the
    i-th of the task's lens classes, taken in turn. On a GPU whole batches of `CUDA_BATCH` are made,
    whatever part of them is asked for.
    """
    size = 1 if device == "cpu" else CUDA_BATCH
    batches: dict[int, tuple[NDArray[np.uint16], list[CatalogRow]]] = {}
    with _one_thread():
        for start in dict.fromkeys(index // size * size for index in indices):
            batches[start] = _make_batch(task, sky, split, range(start, start + size), seed, device)
    places = [(index // size * size, index % size) for index in indices]
    images = np.stack([batches[start][0][place] for start, place in places])
    return images[:, None], [batches[start][1][place] for start, place in places]


def _make_batch(
    task: TaskSpec, sky: Sky, split: SplitName, indices: Sequence[int], seed: int, device: str
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return (B, H, W) counts and catalogue rows of images that are made together."""
    streams = [image_stream(seed, split, index) for index in indices]
    classes = [task.lens_classes[index % len(task.lens_classes)] for index in indices]
    lenses = [draw_lens(sky, name, rng) for name, rng in zip(classes, streams, strict=True)]
    generator = torch.Generator(device).manual_seed(int(streams[0].integers(2**63)))
    images = render_for(task, sky, lenses, device=device)
    peaks = images.amax(dim=(1, 2)).tolist()
    exposures = [sky.noise.settle(peak, rng) for peak, rng in zip(peaks, streams, strict=True)]
    counts = expose(images, exposures, generator).cpu().numpy().astype(np.uint16)
    facts = zip(indices, lenses, exposures, strict=True)
    return counts, [_catalog_row(task, split, index, lens, exposure) for index, lens, exposure in facts]


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


def make_recipe(task: TaskSpec, split: Split, *, sky: str = DEFAULT_SKY, seed: int = 0) -> Recipe:
    """Return the identity of the data; raise as `simulate_dataset` does where there can be none."""
    if sky not in SKIES:
        raise LookupError(explain_unknown("sky", sky, SKIES))
    channels, height, width = task.image_shape
    if not task.lens_classes or not set(task.lens_classes) <= set(LENS_CLASSES) or channels != 1 or height != width:
        raise ValueError(f"task {task.name!r} is not about single-band square images of {', '.join(LENS_CLASSES)}")
    if task.kind == "regression" and is_fixed(SKIES[sky].subhalo_mass) and is_fixed(SKIES[sky].subhalo_count):
        raise ValueError(f"under sky {sky!r} the mass fraction never varies: no data for {task.name!r}")
    return Recipe(
        task=task.name,
        sky=sky,
        sky_digest=SKIES[sky].digest,
        seed=seed,
        sizes={"train": split.train, "validation": split.validation, "test": split.test},
        simulator=SIMULATOR_VERSION,
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


def _chunks(recipe: Recipe, images: int) -> Iterator[_Chunk]:
    """Yield the work in the order of the rows; a chunk's bounds depend on the index alone."""
    row = 0
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    for split in names:
        for start in range(0, recipe.sizes[split], images):
            stop = min(start + images, recipe.sizes[split])
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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        yield from pool.map(work, chunks)


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone, killed or not; the pool does not see to it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fill_chunk(task: TaskSpec, sky: Sky, seed: int, path: Path, device: str, chunk: _Chunk) -> list[CatalogRow]:
    """Write the images of *chunk* into the array at *path* and return their catalogue rows."""
    images, rows = simulate_images(task, sky, chunk.split, range(chunk.start, chunk.stop), seed=seed, device=device)
    stored = np.lib.format.open_memmap(path, mode="r+")
    stored[chunk.row : chunk.row + len(images)] = images
    stored.flush()
    return rows


def _catalog_row(task: TaskSpec, split: SplitName, index: int, lens: Lens, exposure: Exposure) -> CatalogRow:
    """Return label and true parameters of one image."""
    truth: CatalogRow = {
        field.name: getattr(facts, field.name)
        for facts in (lens, exposure)
        for field in fields(facts)
        if field.name not in ("lens_class", "subhalos", "shot_twice")
    }
    truth["n_subhalos"] = len(lens.subhalos)
    label = task.classes.index(lens.lens_class) if task.classes else truth[task.targets[0].name]
    return {"split": split, "index": index, "label": label, "class": lens.lens_class, **truth}
