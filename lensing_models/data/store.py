"""The store: one folder a data set, with its images, its catalogue and two digests.

``images.npy`` holds the counts and is read through a memory map, ``catalog.parquet`` one row an
image, ``manifest.json`` what was asked for and what came out, ``CARD.md`` the same for people.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lensing_models.data.manifest import (
    Manifest,
    Recipe,
    SplitName,
    read_manifest,
    render_card,
    write_manifest,
)

IMAGES, CATALOG, MANIFEST, CARD = "images.npy", "catalog.parquet", "manifest.json", "CARD.md"
BEGUN = "begun"  # what unfinished work is of
LOCK = ".lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """An open data set; `open_store` makes it. It holds no file open.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        catalog: One row an image in the order of ``images.npy``: ``split``, ``index`` within the
            split, ``label``, ``class``, and every true parameter.
    """

    folder: Path
    manifest: Manifest
    catalog: pd.DataFrame = field(repr=False, compare=False)

    @property
    def recipe_digest(self) -> str:
        """Return the identity of the data."""
        return self.manifest.recipe_digest

    @property
    def sky(self) -> str:
        """Return the name of the sky that the images show."""
        return self.manifest.recipe.sky

    @property
    def task(self) -> str:
        """Return the name of the task that the labels answer."""
        return self.manifest.recipe.task

    def indices(self, split: SplitName) -> NDArray[np.int64]:
        """Return the rows of *split* in ``images.npy``, by index within the split."""
        if split not in get_args(SplitName):
            raise LookupError(f"unknown split {split!r}; known: {', '.join(get_args(SplitName))}")
        return np.flatnonzero(self.catalog["split"].to_numpy() == split).astype(np.int64)

    def labels(self, split: SplitName) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return (N,) labels of *split*: int64 classes, or float64 true values of the target."""
        return self.catalog["label"].to_numpy()[self.indices(split)]

    def stored(self, indices: NDArray[np.integer]) -> NDArray[np.generic]:
        """Return a copy (B, C, H, W) of the rows *indices* as they are stored; IndexError beyond the last."""
        images: NDArray[np.generic] = np.load(self.folder / IMAGES, mmap_mode="r")
        return np.asarray(images[indices])

    def counts(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return (B, C, H, W) float32 counts of the rows *indices*; IndexError beyond the last."""
        return self.decode(self.stored(indices))

    def decode(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the float32 counts that *stored* values stand for."""
        counts: NDArray[np.float32] = stored.astype(np.float32)
        if (self.manifest.scale, self.manifest.offset) != (1.0, 0.0):
            counts *= np.float32(self.manifest.scale)
            counts += np.float32(self.manifest.offset)
        return counts


def open_store(folder: Path) -> Store:
    """Return the store in *folder* after a cheap check: manifest, sizes and number of rows.

    Raises:
        ValueError: If a file is missing, damaged, of another size than stated, or of a newer
            schema; the message names the file.
    """
    manifest = read_manifest(folder / MANIFEST)
    _check_images(folder / IMAGES, manifest)
    path = folder / CATALOG
    try:
        catalog = pd.read_parquet(path)
        catalog["split"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}; make the data set again") from error
    _check_catalog(catalog, manifest.recipe, path)
    return Store(folder=folder, manifest=manifest, catalog=catalog)


def verify_store(folder: Path) -> Store:
    """Return the store in *folder* after reading every byte; ValueError if one has changed."""
    store = open_store(folder)
    found, stated = _content_digest(folder), store.manifest.content_sha256
    if found != stated:
        raise ValueError(
            f"{folder}: content has SHA-256 {found[:12]}, the manifest says {stated[:12]}; make the data set again"
        )
    return store


class BusyError(ValueError):
    """Another process is making the same store."""


def write_store(
    folder: Path,
    recipe: Recipe,
    fill: Callable[[Path], pd.DataFrame],
    *,
    dtype: str = "uint16",
    about: str,
    archive: str = "",
    work: str = "",
    scratch: tuple[str, ...] = (),
    resume: bool = False,
) -> Store:
    """Make a store at *folder*; it appears there when it is whole, or not at all.

    Unfinished work lies beside it in ``.<name>.partial``, held by a lock that dies with its owner.

    Args:
        folder: Where to; it must not exist yet.
        recipe: What was asked for; its sizes and image shape lay out ``images.npy``.
        fill: Gets the path of ``images.npy``, all zeros or as an interrupted `fill` of the same
            *work* left it, writes the values there and returns the catalogue in the same order.
        dtype: Type of the stored values.
        about: What the data are and where their limits lie, for the card.
        archive: Of an import, the digest of the archive's images.
        work: How the work is cut, where an interrupted `fill` can be gone on with: what it has
            done is then kept on any error. Empty where it cannot.
        scratch: Files that `fill` keeps beside the images to go on later; removed at the end.
        resume: Whether to go on with unfinished work of the same recipe and *work*.

    Raises:
        FileExistsError: If *folder* exists.
        BusyError: If another process is writing it.
        ValueError: If there is unfinished work that *resume* does not ask for, or of something else.
    """
    draft = folder.with_name(f".{folder.name}.partial")
    _expect_nothing(folder)
    draft.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(draft / LOCK, timeout=0):
            _expect_nothing(folder)
            begun = _go_on(draft, f"{recipe.digest} {work}", resume=resume)
            with ExitStack() as undo:
                if not work:
                    undo.callback(shutil.rmtree, draft, ignore_errors=True)
                if not begun:
                    _lay_out(draft / IMAGES, (sum(recipe.sizes.values()), *recipe.image_shape), dtype)
                    if work:
                        (draft / BEGUN).write_text(f"{recipe.digest} {work}", encoding="ascii")
                catalog = fill(draft / IMAGES)
                _finish(draft, recipe, catalog, dtype, about, archive, scratch)
                # The lock goes last: whoever finds it gone finds the store.
                _move(draft, folder)
                (folder / LOCK).unlink(missing_ok=True)
                undo.pop_all()
    except Timeout as error:
        raise BusyError(f"another process is writing {folder}; wait for it or name another folder") from error
    return open_store(folder)


def _finish(
    draft: Path, recipe: Recipe, catalog: pd.DataFrame, dtype: str, about: str, archive: str, scratch: tuple[str, ...]
) -> None:
    """Write what belongs to a store beside its images, and remove what does not."""
    _check_catalog(catalog, recipe, draft / CATALOG)
    catalog.to_parquet(draft / CATALOG, index=False)
    content = _content_digest(draft)
    manifest = Manifest(
        recipe=recipe, recipe_digest=recipe.digest, dtype=dtype, archive=archive, content_sha256=content
    )
    write_manifest(draft / MANIFEST, manifest)
    (draft / CARD).write_text(render_card(manifest, about), encoding="utf-8")
    for name in (*scratch, BEGUN):
        (draft / name).unlink(missing_ok=True)


def _expect_nothing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name another folder or remove it")


def _go_on(draft: Path, key: str, *, resume: bool) -> bool:
    """Say whether the work in *draft* is gone on with; what cannot be gone on with is removed.

    Raises:
        ValueError: If that would lose work that can be gone on with.
    """
    found = (draft / BEGUN).read_text(encoding="ascii") if (draft / BEGUN).exists() else ""
    if found and found == key and resume:
        log.warning("going on with the unfinished work in %s", draft)
        return True
    if found:
        how = "add --resume" if found == key else "repeat the call that began it with --resume"
        raise ValueError(f"{draft} is unfinished work{'' if found == key else ' on other data'}; {how}, or remove it")
    for path in draft.iterdir():
        if path.name != LOCK:
            path.unlink()
    return False


def _lay_out(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write an array of zeros whose room on the disk is taken."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape).flush()
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here; in the mapped file it would be a crash
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _move(draft: Path, folder: Path) -> None:
    """Move *draft* to *folder*; FileExistsError if somebody has filled it meanwhile."""
    try:
        draft.replace(folder)
    except OSError as error:
        if folder.exists():
            raise FileExistsError(f"{folder} came to be while its data were made; these are dropped") from error
        raise


def _check_images(path: Path, manifest: Manifest) -> None:
    """Raise ValueError, naming *path*, unless it is as long, shaped and typed as stated."""
    expected = (sum(manifest.recipe.sizes.values()), *manifest.recipe.image_shape)
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing, truncated or no array: {error}; make the data set again") from error
    if not isinstance(images, np.memmap) or images.shape != expected or images.dtype.name != manifest.dtype:
        found = f"{images.dtype.name} {images.shape}" if isinstance(images, np.ndarray) else "an archive"
        stated = f"{manifest.dtype} {expected}"
        raise ValueError(f"{path} holds {found}, the manifest says {stated}; make the data set again")
    if path.stat().st_size != images.offset + images.nbytes:
        raise ValueError(f"{path} has bytes behind its last image; make the data set again")


def _check_catalog(catalog: pd.DataFrame, recipe: Recipe, path: Path) -> None:
    """Raise ValueError, naming *path*, unless there are as many rows in each split as stated."""
    counted, stated = catalog["split"].value_counts().to_dict(), recipe.sizes
    if len(catalog) != sum(stated.values()) or any(counted.get(split, 0) != size for split, size in stated.items()):
        raise ValueError(f"{path} has rows {counted}, the manifest says {dict(stated)}; make the data set again")


def _content_digest(folder: Path) -> str:
    """Return the SHA-256 over those of images and catalogue."""
    total = hashlib.sha256()
    for name in (IMAGES, CATALOG):
        with (folder / name).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
