"""Make a store of a published archive: look at every file once, draw the splits, then copy the images.

The archive is read twice and never held: the sizes, the type of the values and the digest of the
recipe are known only when every file has been seen.
"""

from __future__ import annotations

import csv
import errno
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lensing_models.data import cutout, deeplense, galaxy_zoo
from lensing_models.data.candidate import Collection, Kind
from lensing_models.data.manifest import Recipe, SplitName
from lensing_models.data.partition import SPLITS, Entry, choose_sizes, draw_splits
from lensing_models.data.store import Store, write_store
from lensing_models.data.survey import Survey, hash_pixels, survey_candidates
from lensing_models.registry import explain_unknown, find_task
from lensing_models.specs import TaskSpec
from lensing_models.tasks import known_tasks

IMPORTER_VERSION = 1  # raise it when the same archive gives another image, label or split
LEFT_OUT = "left_out.csv"
REPORT_EVERY = 500  # files

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the files done, and the files in all where that is known."""


def known_kinds() -> dict[str, Kind]:
    """Return every kind of archive by name."""
    return {kind.name: kind for kind in (*deeplense.KINDS, galaxy_zoo.KIND, cutout.KIND)}


def find_kind(name: str) -> Kind:
    """Return the kind called *name*; raise LookupError with the known ones otherwise."""
    kinds = known_kinds()
    if name not in kinds:
        raise LookupError(explain_unknown("kind of archive", name, kinds))
    return kinds[name]


def find_kinds_task(kind: Kind, name: str | None) -> TaskSpec:
    """Return the task called *name*, by default that of *kind*; raise LookupError if it is unknown."""
    if not name and not kind.task:
        raise ValueError(f"an archive of kind {kind.name} may answer any task; name it with --task: {_tasks()}")
    return find_task(name or kind.task)


def import_archive(
    kind: Kind,
    path: Path,
    task: TaskSpec,
    folder: Path,
    *,
    seed: int = 0,
    sizes: Mapping[SplitName, int] | None = None,
    labels: Path | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Import the archive at *path* and return its store at *folder*.

    Values are kept exactly where uint8, uint16 or float16 can, otherwise rounded to float32. Of
    images that are the same pixel by pixel in float32, the first by name is kept.

    Args:
        kind: What the archive is.
        path: A folder, a zip or a tar as downloaded; for FITS also one cube.
        task: What the labels answer.
        folder: Where to; it must not exist. It appears when it is whole, or not at all.
        seed: Seed of the splits.
        sizes: Sizes of splits that differ from the published ones.
        labels: Table of labels, where the kind takes one.
        skip_bad: Leave unusable files and rows out, and list them in ``left_out.csv``.
        progress: Told of the files read.

    Raises:
        FileExistsError: If *folder* exists.
        OSError: If the disk is full; then nothing is left at *folder*.
        ValueError: If the archive is damaged or unsafe, holds no usable image or too few, or a
            file of it is bad (`BadFileError`) and *skip_bad* is not set; the message names it.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name another folder or remove it")
    if labels is not None and kind.labels == "inside":
        raise ValueError(f"an archive of kind {kind.name} holds its own labels; leave --labels out")
    tell = progress or (lambda *_: None)
    collection = kind.open(path, task, labels)
    survey = survey_candidates(collection, skip_bad=skip_bad, seen=lambda done: _report(tell, "read", done, None))
    if not survey.entries:
        raise ValueError(f"{path} holds no usable image of kind {kind.name}; expected: {kind.layout}")
    chosen = choose_sizes(kind.shares, survey.pools(), sizes or {})
    splits = draw_splits(survey.entries, chosen, kind.shares, seed)
    rows = [entry for split in SPLITS for entry in splits[split]]
    recipe = _make_recipe(kind, task, splits, seed)

    def fill(images: Path) -> pd.DataFrame:
        _copy_images(collection, images, rows, path, tell)
        if survey.left_out:
            _write_left_out(images.with_name(LEFT_OUT), survey)
        return _catalog(splits)

    try:
        about, archive = _describe(kind, survey, len(rows)), _digest_archive(survey)
        return write_store(folder, recipe, fill, dtype=survey.dtype, about=about, archive=archive)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        size = len(rows) * int(np.prod(task.image_shape)) * np.dtype(survey.dtype).itemsize
        raise OSError(f"the disk of {folder} is full; it takes {size} bytes; nothing was left there") from error


def _digest_archive(survey: Survey) -> str:
    """Return what tells one archive from another, whatever its files are called and however it is split."""
    return hashlib.sha256("\n".join(sorted(entry.digest for entry in survey.entries)).encode()).hexdigest()


def _make_recipe(kind: Kind, task: TaskSpec, splits: Mapping[SplitName, list[Entry]], seed: int) -> Recipe:
    """Return the identity of the data: what the kind's rule made of the archive, row by row."""
    content = hashlib.sha256(f"{kind.name}\n{kind.rule}\n".encode())
    for split in SPLITS:
        for entry in splits[split]:
            content.update(f"{entry.name}\t{entry.digest}\t{entry.label!r}\n".encode())
    return Recipe(
        task=task.name,
        sky=kind.name,
        sky_digest=content.hexdigest(),
        seed=seed,
        sizes={str(split): len(splits[split]) for split in SPLITS},
        simulator=IMPORTER_VERSION,
        image_shape=task.image_shape,
        pixel_scale_arcsec=task.pixel_scale_arcsec,
    )


def _copy_images(collection: Collection, images: Path, rows: list[Entry], path: Path, tell: Progress) -> None:
    """Write the images of *rows* into the array at *images*; ValueError if the archive has changed."""
    stored = np.lib.format.open_memmap(images, mode="r+")
    wanted = {entry.name: row for row, entry in enumerate(rows)}
    done = 0
    for candidate in collection.candidates():
        row = wanted.pop(candidate.name, None)
        if row is None:
            continue
        pixels = candidate.read().pixels
        if hash_pixels(pixels) != rows[row].digest:
            raise ValueError(f"{path}: {candidate.name} changed while it was imported; import it again")
        stored[row] = pixels
        done += 1
        _report(tell, "copy", done, len(rows))
    if wanted:
        raise ValueError(f"{path}: {min(wanted)} vanished while it was imported; import it again")
    stored.flush()


def _report(tell: Progress, what: str, done: int, total: int | None) -> None:
    if done % REPORT_EVERY == 0 or done == total:
        tell(what, done, total)


def _catalog(splits: Mapping[SplitName, list[Entry]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"split": split, "index": index, "label": entry.label, "class": entry.class_name, "file": entry.name}
            | dict(entry.facts)
            for split in SPLITS
            for index, entry in enumerate(splits[split])
        ]
    )


def _write_left_out(path: Path, survey: Survey) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("kind", "reason"))
        writer.writerows(survey.left_out)


def _describe(kind: Kind, survey: Survey, kept: int) -> str:
    """Return what the card says of the data."""
    counts = ", ".join(f"{number} {reason}" for reason, number in survey.counts.items() if number)
    listed = f" Bad files and duplicates are listed in {LEFT_OUT}." if survey.left_out else ""
    unused = len(survey.entries) - kept
    return (
        f"Imported, not simulated here. {kind.about}\n\nRule: {kind.rule}.\n\n"
        f"Left out: {counts or 'nothing'}; usable beyond the sizes: {unused}.{listed} The line 'sky' names the kind "
        "of archive; no image is in two splits, by the SHA-256 of its pixels."
    )


def _tasks() -> str:
    return ", ".join(known_tasks())
