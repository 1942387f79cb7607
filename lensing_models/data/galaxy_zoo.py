"""The Galaxy Zoo challenge on Kaggle: colour images, and five clean classes from the votes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lensing_models.data.archive import Member, iterate_members
from lensing_models.data.candidate import BadFileError, Candidate, Collection, Example, Kind, as_image, find_class
from lensing_models.data.label_table import Row, index_rows, read_table
from lensing_models.data.partition import Shares
from lensing_models.specs import TaskSpec

SOLUTIONS = "training_solutions_rev1.csv"
SIDE, CROP = 424, 208  # [px]; 208 is the even number nearest to the 207 that is usual
#: The column that each fraction has to be divided by: the share of the votes that got as far.
PARENTS = {
    **{"Class2.1": "Class1.2", "Class2.2": "Class1.2", "Class4.1": "Class2.2"},
    **{"Class7.1": "Class1.1", "Class7.2": "Class1.1", "Class7.3": "Class1.1"},
}
COLUMNS = ("GalaxyID", "Class1.1", "Class1.2", *PARENTS)
#: Each class asks for more than these fractions of the answers to each question. Thresholds: Willett et
#: al. 2013 (MNRAS 435, 2835), table 3, in the five classes of Zhu et al. 2019 (Ap&SS 364, 55).
RULES: Mapping[str, Mapping[str, float]] = {
    "round": {"Class1.1": 0.469, "Class7.1": 0.50},
    "in_between": {"Class1.1": 0.469, "Class7.2": 0.50},
    "cigar": {"Class1.1": 0.469, "Class7.3": 0.50},
    "edge_on": {"Class1.2": 0.430, "Class2.1": 0.602},
    "spiral": {"Class1.2": 0.430, "Class2.2": 0.715, "Class4.1": 0.619},
}
ROUNDING = 1e-5  # the published fractions have six decimals


def name_classes(votes: Mapping[str, float]) -> list[str]:
    """Return the classes whose rule *votes* satisfy: none, one, or rarely two.

    Args:
        votes: The columns `COLUMNS` but the first, as published: products along the question tree.
    """
    parents = {column: votes[parent] for column, parent in PARENTS.items()}
    answers = {
        column: vote / parents.get(column, 1.0) if parents.get(column, 1.0) > 0 else 0.0
        for column, vote in votes.items()
    }
    return [
        name for name, rule in RULES.items() if all(answers[column] > threshold for column, threshold in rule.items())
    ]


def reduce_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre of a galaxy's image at half the resolution.

    Args:
        image: (424, 424, 3).

    Returns:
        (3, 104, 104): the central 208 x 208 px, each 2 x 2 averaged and rounded half up.
    """
    start, half = (SIDE - CROP) // 2, CROP // 2
    centre = image[start : start + CROP, start : start + CROP].astype(np.uint16)
    total = centre.reshape(half, 2, half, 2, 3).sum(axis=(1, 3), dtype=np.uint16)
    return np.ascontiguousarray(((total + 2) // 4).astype(np.uint8).transpose(2, 0, 1))


def _open_galaxy_zoo(path: Path, task: TaskSpec, labels: Path | None) -> Collection:
    """Return the clean galaxies; the name of an image is the galaxy's ID."""
    for class_name in RULES:
        find_class(task, class_name)
    known, classes, broken, left_out = _read_classes(path, labels)

    def read(member: Member, class_name: str) -> Example:
        image = as_image(reduce_image(_decode(member)), member.label, task)
        return Example(pixels=image, label=find_class(task, class_name), class_name=class_name)

    def refuse(reason: str) -> Example:
        raise BadFileError(reason)

    def candidates() -> Iterator[Candidate]:
        missing = set(classes)
        for member in _photographs(path):
            galaxy = PurePosixPath(member.name).stem
            missing.discard(galaxy)
            if galaxy in classes:
                yield Candidate(name=galaxy, read=partial(read, member, classes[galaxy]))
            elif galaxy not in known:
                reason = f"{member.label} has no valid row in {SOLUTIONS}"
                yield Candidate(name=member.name, read=partial(refuse, reason))
        for galaxy in sorted(missing):
            yield Candidate(name=galaxy, read=partial(refuse, f"{path} has no image of galaxy {galaxy}"))

    return Collection(candidates=candidates, problems=tuple(broken), left_out=left_out)


def _read_classes(
    path: Path, labels: Path | None
) -> tuple[set[str], dict[str, str], list[BadFileError], dict[str, int]]:
    """Return all galaxies with votes, the class of the clean ones, broken rows and how many are unclean."""
    content, name = (labels.read_bytes(), str(labels)) if labels else _find_solutions(path)
    rows, broken = index_rows(read_table(content, name, COLUMNS), "GalaxyID")
    known: set[str] = set()
    classes: dict[str, str] = {}
    unclean: Counter[str] = Counter()
    for galaxy, row in rows.items():
        try:
            found = name_classes(_read_votes(row))
        except BadFileError as error:
            broken.append(error)
            continue
        known.add(galaxy)
        if len(found) == 1:
            classes[galaxy] = found[0]
        else:
            unclean["in two classes" if found else "in no class"] += 1
    return known, classes, broken, dict(unclean)


def _find_solutions(path: Path) -> tuple[bytes, str]:
    for member in iterate_members(path):
        if PurePosixPath(member.name).name == SOLUTIONS:
            return member.read(), member.label
    raise ValueError(f"{path} holds no {SOLUTIONS}; put it there or name it with --labels")


def _read_votes(row: Row) -> dict[str, float]:
    """Return the fractions of *row*; BadFileError if one is none, or the galaxy has no number."""
    if not row.fields["GalaxyID"].isdecimal():
        raise BadFileError(f"{row.where}: GalaxyID is {row.fields['GalaxyID']!r}, not a number")
    votes = {column: row.number(column) for column in COLUMNS[1:]}
    for column, vote in votes.items():
        if not -ROUNDING <= vote <= 1 + ROUNDING:
            raise BadFileError(f"{row.where}: {column} is {vote}, not a fraction")
    return votes


def _photographs(path: Path) -> Iterator[Member]:
    """Yield the images; those of the challenge's test set have no votes and are passed over."""
    for member in iterate_members(path):
        if member.name.endswith(".jpg") and "images_test" not in member.name:
            yield member


def _decode(member: Member) -> NDArray[np.uint8]:
    """Return the (424, 424, 3) pixels; BadFileError, naming the file, if it has no such."""
    content = member.read()
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if (image.size, image.mode) != ((SIDE, SIDE), "RGB"):
                raise BadFileError(
                    f"{member.label} is {image.width} x {image.height} px, {image.mode}; not {SIDE} x {SIDE}, RGB"
                )
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadFileError(f"{member.label} is truncated or no JPEG: {error}") from error


KIND = Kind(
    name="galaxy_zoo",
    task="galaxy_morphology",
    labels="inside or given",
    layout=f"images_training_rev1/<GalaxyID>.jpg and {SOLUTIONS}, unpacked or as Kaggle's zips in one folder",
    rule="; ".join(
        f"{name}: {' and '.join(f'{column} > {threshold:.3f}' for column, threshold in rule.items())}"
        for name, rule in RULES.items()
    )
    + "; each column divided by its parent's in the question tree; in exactly one class"
    + f"; central {CROP} of {SIDE} px, 2 x 2 averaged, rounded half up",
    about=(
        "Galaxy Zoo 2 as of the Kaggle challenge (2013): SDSS colour images of galaxies and the votes of volunteers. "
        "Only galaxies of a clear class are kept, by the thresholds of Willett et al. 2013 (MNRAS 435, 2835), table "
        "3, in the five classes of Zhu et al. 2019 (Ap&SS 364, 55), so that scores are better than on all galaxies. "
        "Labels are opinions. Each galaxy was scaled to its frame by its size, so there is no one pixel scale."
    ),
    shares=Shares(weights={"train": 8, "validation": 1, "test": 1}, capped=False),
    open=_open_galaxy_zoo,
)
