"""Data sets of simulated lenses and galaxies: the same bytes for any number of workers, and after a kill."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray

from lensing_models.data.draw import image_stream
from lensing_models.data.galaxies import galaxy_source
from lensing_models.data.galaxy_physics import GALAXIES
from lensing_models.data.lenses import lens_source
from lensing_models.data.manifest import Recipe, SplitName
from lensing_models.data.sky import SKIES
from lensing_models.data.source import CatalogRow, Source
from lensing_models.data.store import BusyError, Store, open_store, write_store
from lensing_models.preset import Preset, Split
from lensing_models.registry import explain_unknown
from lensing_models.specs import TaskSpec

DEFAULT_SKY = "archive_fit"
CHUNK_IMAGES = 24  # what a worker holds in memory, and how often the progress moves
JOURNAL = "chunks.jsonl"  # catalogue rows of finished chunks, beside the unfinished images

#: Everything that images are made from, by name: the skies of the lenses, and the galaxies.
SOURCES: Mapping[str, Source] = {row.name: row for row in (*map(lens_source, SKIES.values()), galaxy_source(GALAXIES))}

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
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Simulate the data of *task* and return their store at *folder*.

    Args:
        task: Says what the images show and what their label is.
        split: Numbers of images.
        folder: Where to; it must not exist.
        sky: Name of a row of `SOURCES`; by default that of `default_sky`.
        seed: Seed of the data set.
        workers: Processes; the bytes do not depend on it. More than one are spawned, so a script
            that asks for them needs the usual ``if __name__ == "__main__"``.
        device: ``cpu``, or ``cuda``, whose counts may differ from the CPU's in their noise.
        resume: Whether to complete what a killed call with the same recipe has left.
        progress: Told of every finished chunk.

    Raises:
        FileExistsError: If *folder* exists.
        OSError: If a worker died, or the disk is full; what was finished can be resumed.
        LookupError: If *sky* is unknown.
        ValueError: If the source has no images for *task*, or a number makes no sense.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    recipe = make_recipe(task, split, sky=sky, seed=seed)
    source = SOURCES[recipe.sky]
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"no usable GPU for device {device!r}; leave --device out")
    chunk_images = max(CHUNK_IMAGES, source.batch(device))
    chunks = list(_chunks(recipe, chunk_images))

    def fill(path: Path) -> pd.DataFrame:
        finished = _read_journal(path.with_name(JOURNAL), chunks)
        missing = [chunk for chunk in chunks if chunk.row not in finished]
        done = sum(map(len, finished.values()))
        with path.with_name(JOURNAL).open("a", encoding="utf-8") as journal:
            work = partial(_fill_chunk, task, recipe.sky, seed, path, device)
            for chunk, rows in zip(missing, _map(work, missing, workers), strict=True):
                finished[chunk.row] = rows
                journal.write(json.dumps({"row": chunk.row, "catalog": rows}) + "\n")
                journal.flush()
                done += len(rows)
                if progress is not None:
                    progress(done, sum(recipe.sizes.values()))
        return pd.DataFrame([row for chunk in chunks for row in finished[chunk.row]])

    about = f"Simulated images, not observations. Sky: {source.origin}. {source.limits} Task after: {task.source}."
    work = f"in chunks of {chunk_images} on {device}"
    return write_store(folder, recipe, fill, about=about, work=work, scratch=(JOURNAL,), resume=resume)


def _read_journal(path: Path, chunks: Sequence[_Chunk]) -> dict[int, list[CatalogRow]]:
    """Return the catalogue rows of finished chunks by the row where each starts.

    The file is rewritten without a torn end, to which the next line would be glued.
    """
    sizes = {chunk.row: chunk.stop - chunk.start for chunk in chunks}
    finished: dict[int, list[CatalogRow]] = {}
    whole: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            if sizes.get(entry["row"]) != len(entry["catalog"]):
                break
        except (ValueError, KeyError, TypeError):
            break
        finished[entry["row"]] = entry["catalog"]
        whole.append(line + "\n")
    rewritten = path.with_suffix(".rewritten")
    rewritten.write_text("".join(whole), encoding="utf-8")
    rewritten.replace(path)
    return finished


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
            _remove_damaged(folder, recipe)
    while True:
        try:
            return simulate_dataset(task, split, folder, seed=seed, workers=workers, resume=True, progress=progress)
        except FileExistsError:
            return _expect(open_store(folder), recipe)  # another process was faster
        except BusyError:
            time.sleep(1)


def _remove_damaged(folder: Path, recipe: Recipe) -> None:
    """Remove *folder*, unless another process has done so meanwhile and made it anew."""
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            _expect(open_store(folder), recipe)
        except ValueError:
            shutil.rmtree(folder, ignore_errors=True)


def simulate_images(
    task: TaskSpec, source: Source, split: SplitName, indices: Sequence[int], *, seed: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.uint16], list[CatalogRow]]:
    """Return (N, C, H, W) counts and catalogue rows of the images *indices* of a split.

    An image depends on (source, seed, split, index) and its class alone. On a GPU whole batches are
    made, whatever part of them is asked for.
    """
    size = source.batch(device)
    batches: dict[int, tuple[NDArray[np.uint16], list[CatalogRow]]] = {}
    with _one_thread():
        for start in dict.fromkeys(index // size * size for index in indices):
            together = range(start, start + size)
            streams = [image_stream(seed, split, index) for index in together]
            batches[start] = source.make(task, together, streams, device)
    places = [(index // size * size, index % size, index) for index in indices]
    images = np.stack([batches[start][0][place] for start, place, _ in places])
    return images, [{"split": split, "index": index, **batches[start][1][place]} for start, place, index in places]


def default_sky(task: TaskSpec) -> str:
    """Return the name of the source that *task* is simulated from where none is named."""
    return DEFAULT_SKY if task.lens_classes else GALAXIES.name


def make_recipe(task: TaskSpec, split: Split, *, sky: str | None = None, seed: int = 0) -> Recipe:
    """Return the identity of the data; raise as `simulate_dataset` does where there can be none."""
    sky = default_sky(task) if sky is None else sky
    if sky not in SOURCES:
        raise LookupError(explain_unknown("sky", sky, SOURCES))
    source = SOURCES[sky]
    if refusal := source.refuse(task):
        raise ValueError(f"sky {sky!r}: {refusal}")
    return Recipe(
        task=task.name,
        sky=sky,
        sky_digest=source.digest,
        seed=seed,
        sizes={"train": split.train, "validation": split.validation, "test": split.test},
        simulator=source.simulator,
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
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
            yield from pool.map(work, chunks)
    except BrokenProcessPool as error:
        raise OSError("a worker died (out of memory?); what was finished is kept: repeat with --resume") from error


def _die_with_parent() -> None:
    """End this worker when the process that started it is gone, killed or not; the pool does not see to it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fill_chunk(task: TaskSpec, sky: str, seed: int, path: Path, device: str, chunk: _Chunk) -> list[CatalogRow]:
    """Write the images of *chunk* into the array at *path* and return their catalogue rows."""
    indices = range(chunk.start, chunk.stop)
    images, rows = simulate_images(task, SOURCES[sky], chunk.split, indices, seed=seed, device=device)
    stored = np.lib.format.open_memmap(path, mode="r+")
    stored[chunk.row : chunk.row + len(images)] = images
    stored.flush()
    return rows
