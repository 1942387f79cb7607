"""Cutouts in FITS with a table of labels: one file an image, or one cube (N, H, W)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lensing_models.data.archive import Member, iterate_members
from lensing_models.data.candidate import (
    BadFileError,
    Candidate,
    Collection,
    Example,
    Kind,
    Pixels,
    as_image,
    check_target,
)
from lensing_models.data.label_table import Row, index_rows, read_table
from lensing_models.data.partition import Shares
from lensing_models.registry import explain_unknown
from lensing_models.specs import TaskSpec

SUFFIXES = (".fits", ".fit", ".fts")
MAGIC = b"SIMPLE"  # what else astropy takes is compressed, and would be unpacked whatever its size


def _open_cutouts(path: Path, task: TaskSpec, labels: Path | None) -> Collection:
    """Return the images that *labels* names; ValueError if it does not go with *path*."""
    _import_astropy()
    if labels is None:
        raise ValueError("cutouts have their labels in a table of their own; name it with --labels CSV")
    is_cube = path.is_file() and path.name.lower().endswith(SUFFIXES)
    key = "index" if is_cube else "file"
    rows, broken = index_rows(read_table(labels.read_bytes(), str(labels), (key, "label")), key)
    candidates = _cube_candidates if is_cube else _file_candidates
    return Collection(candidates=partial(candidates, path, rows, task, labels), problems=tuple(broken))


def _file_candidates(path: Path, rows: dict[str, Row], task: TaskSpec, labels: Path) -> Iterator[Candidate]:
    """Yield an image a file; its name is that in the table."""
    missing = dict(rows)
    for member in iterate_members(path):
        if not member.name.lower().endswith(SUFFIXES):
            continue
        row = _row_of(member.name, rows)
        if row is None:
            yield Candidate(name=member.name, read=partial(_refuse, f"{member.label} has no row in {labels}"))
        else:
            missing.pop(row.fields["file"], None)
            pixels = partial(_read_image, member, task)
            yield Candidate(name=row.fields["file"], read=partial(_label, pixels, row, task))
    for name, row in missing.items():
        yield Candidate(name=name, read=partial(_refuse, f"{row.where}: {path} has no file {name!r}"))


def _row_of(name: str, rows: dict[str, Row]) -> Row | None:
    """Return the row of the file *name*; the table may leave out the folders above it."""
    parts = name.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((rows[end] for end in ends if end in rows), None)


def _cube_candidates(path: Path, rows: dict[str, Row], task: TaskSpec, labels: Path) -> Iterator[Candidate]:
    """Yield an image a plane; its name is its index."""
    fits = _import_astropy()
    with ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        if stream.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no FITS file, or a compressed one")
        stream.seek(0)
        with _fits_errors(str(path), ValueError):
            unit = _image_unit(stack.enter_context(fits.open(stream, memmap=False)), str(path))
            number = int(unit.shape[0])
        if len(unit.shape) != 3:
            raise ValueError(f"{path} holds an array of shape {unit.shape}, not a cube (N, H, W)")
        for index in range(number):
            label = f"{path} plane {index}"
            row = rows.get(str(index))
            if row is None:
                yield Candidate(name=str(index), read=partial(_refuse, f"{label} has no row in {labels}"))
            else:
                pixels = partial(_read_plane, unit, index, label, task)
                yield Candidate(name=str(index), read=partial(_label, pixels, row, task))
    for name in sorted(rows.keys() - set(map(str, range(number)))):
        reason = f"{rows[name].where}: {path} has no plane {name!r}; it has 0 to {number - 1}"
        yield Candidate(name=name, read=partial(_refuse, reason))


def _label(pixels: Callable[[], Pixels], row: Row, task: TaskSpec) -> Example:
    """Return the image with the label of *row*; BadFileError if *task* knows no such label."""
    if task.targets:
        value = check_target(task, row.number("label"), row.where)
        return Example(pixels=pixels(), label=value, facts={task.targets[0].name: value})
    class_name = row.fields["label"]
    if class_name not in task.classes:
        raise BadFileError(f"{row.where}: {explain_unknown('class', class_name, task.classes)}")
    return Example(pixels=pixels(), label=task.classes.index(class_name), class_name=class_name)


def _read_image(member: Member, task: TaskSpec) -> Pixels:
    content = member.read()
    if not content.startswith(MAGIC):
        raise BadFileError(f"{member.label} is no FITS file, or a compressed one")
    fits = _import_astropy()
    with _fits_errors(member.label, BadFileError), fits.open(io.BytesIO(content), memmap=False) as units:
        unit = _image_unit(units, member.label)
        # The shape in the header is compared before anything of that size is made.
        as_image(np.broadcast_to(np.uint8(0), unit.shape), member.label, task)
        return as_image(np.array(unit.data), member.label, task)


def _read_plane(unit: Any, index: int, label: str, task: TaskSpec) -> Pixels:  # Any: astropy is not typed
    with _fits_errors(label, BadFileError):
        as_image(np.broadcast_to(np.uint8(0), unit.shape[1:]), label, task)
        return as_image(np.array(unit.section[index]), label, task)


def _image_unit(units: Any, label: str) -> Any:  # Any: astropy is not typed
    """Return the first header-data unit with an image."""
    for unit in units:
        if unit.is_image and len(unit.shape) >= 2:
            return unit
    raise BadFileError(f"{label} holds no image")


@contextmanager
def _fits_errors(label: str, kind: type[ValueError]) -> Iterator[None]:
    """Turn whatever astropy says of a damaged file, its warnings included, into *kind*, naming *label*."""
    from astropy.io.fits.verify import VerifyError, VerifyWarning
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", AstropyWarning)
        # A keyword that astropy ignores, such as BLANK beside floats, harms no pixel.
        warnings.simplefilter("ignore", VerifyWarning)
        try:
            yield
        except BadFileError:
            raise
        except (OSError, EOFError, TypeError, ValueError, LookupError, VerifyError, AstropyWarning) as error:
            raise kind(f"{label} is truncated or damaged: {error}") from error


def _import_astropy() -> ModuleType:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise ValueError("FITS needs astropy; install it: pip install 'lensing-bench[fits]'") from error
    module: ModuleType = fits
    return module


def _refuse(reason: str) -> Example:
    raise BadFileError(reason)


KIND = Kind(
    name="fits",
    task="",
    labels="given",
    layout="*.fits (one image a file), or one cube *.fits (N, H, W); a table with the columns file or index, and label",
    rule="label = column label of the table",
    about="Cutouts in FITS and labels that the user gave; what they show and where they come from is not recorded.",
    shares=Shares(weights={"train": 8, "validation": 1, "test": 1}, capped=False),
    open=_open_cutouts,
)
