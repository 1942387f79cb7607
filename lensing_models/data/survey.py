"""The first look at an archive: what is usable, what is bad, what is there twice, how to store it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lensing_models.data.candidate import BadFileError, Candidate, Collection, Pixels
from lensing_models.data.partition import Entry

#: Types that values may be stored in, smallest first; the last holds anything, rounded.
DTYPES = ("uint8", "uint16", "float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What an archive holds.

    Attributes:
        entries: The usable images, by name; no two have the same pixels.
        left_out: ``bad`` or ``duplicate``, and the reason, which names the file.
        counts: Number left out by reason.
        dtype: Smallest of `DTYPES` that holds every usable image exactly, or float32.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]
    counts: Mapping[str, int]
    dtype: str

    def pools(self) -> Counter[str]:
        """Return the number of usable images by pool."""
        return Counter(entry.pool for entry in self.entries)


def survey_candidates(collection: Collection, *, skip_bad: bool, seen: Callable[[int], None]) -> Survey:
    """Read every candidate of *collection* once, keeping no pixels.

    Raises:
        BadFileError: If one is bad and *skip_bad* is not set.
        ValueError: If two have the same name.
    """
    left_out = [("bad", str(_skip(problem, skip_bad))) for problem in collection.problems]
    entries: list[Entry] = []
    names: set[str] = set()
    dtypes = set(DTYPES)
    for number, candidate in enumerate(collection.candidates(), start=1):
        if candidate.name in names:
            raise ValueError(f"{candidate.name!r} is in the archive twice (packed and unpacked side by side?)")
        names.add(candidate.name)
        try:
            entry, fitting = _look_at(candidate)
        except BadFileError as error:
            left_out.append(("bad", str(_skip(error, skip_bad))))
        else:
            entries.append(entry)
            dtypes &= fitting
        seen(number)
    unique, duplicates = _drop_duplicates(entries)
    left_out += [("duplicate", reason) for reason in duplicates]
    return Survey(
        entries=tuple(unique),
        left_out=tuple(left_out),
        counts={**Counter(kind for kind, _ in left_out), **collection.left_out},
        dtype=next(dtype for dtype in DTYPES if dtype in dtypes),
    )


def hash_pixels(pixels: Pixels) -> str:
    """Return the SHA-256 of *pixels* as float32, in which networks see them, and of their shape."""
    total = hashlib.sha256(repr(pixels.shape).encode())
    total.update(np.ascontiguousarray(pixels, dtype="<f4").tobytes())
    return total.hexdigest()


def fitting_dtypes(pixels: Pixels) -> set[str]:
    """Return those of `DTYPES` that hold *pixels*; whole numbers from 0 to 65,535 are counts, of any type."""
    fitting = {"float32"}
    if pixels.dtype == np.uint8:
        fitting.add("uint8")
    if pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max and (np.rint(pixels) == pixels).all():
        fitting.add("uint16")
    with np.errstate(over="ignore"):
        if (pixels.astype(np.float16) == pixels).all():
            fitting.add("float16")
    return fitting


def _look_at(candidate: Candidate) -> tuple[Entry, set[str]]:
    example = candidate.read()
    entry = Entry(
        name=candidate.name,
        digest=hash_pixels(example.pixels),
        label=example.label,
        class_name=example.class_name,
        pool=candidate.pool,
        facts=example.facts,
    )
    return entry, fitting_dtypes(example.pixels)


def _skip(problem: BadFileError, skip_bad: bool) -> BadFileError:
    """Return *problem* if bad files are to be skipped, otherwise raise it."""
    if not skip_bad:
        raise BadFileError(f"{problem}; --skip-bad leaves such files out") from problem
    return problem


def _drop_duplicates(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Return *entries* by name without those whose pixels an earlier one has, and what became of these."""
    first: dict[str, Entry] = {}
    reasons = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        kept = first.setdefault(entry.digest, entry)
        if kept is not entry:
            conflict = "" if kept.label == entry.label else f", but label {entry.label} instead of {kept.label}"
            reasons.append(f"{entry.name} has the pixels of {kept.name}{conflict}")
    return list(first.values()), reasons
