"""What an archive gives: candidates that are read one at a time; and what a kind of archive is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lensing_models.data.partition import Shares
from lensing_models.specs import TaskSpec

Pixels = NDArray[Any]  # Any: integers or floats, as the archive has them


class BadFileError(ValueError):
    """One file cannot be used, the others can; the message names it and says what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled image.

    Attributes:
        pixels: (C, H, W) real numbers in the archive's own type and unit, all finite.
        label: Class index, or true value of the target.
        class_name: Name of the class; empty where the archive has none.
        facts: Further true parameters; each becomes a column of the catalogue.
    """

    pixels: Pixels
    label: int | float
    class_name: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An image that may become part of a data set.

    Attributes:
        name: Its identity, the same however the archive is packed, and unique in it.
        read: Returns it, or raises `BadFileError`; valid until the next candidate is asked for.
        pool: Part of the archive it comes from, where splits are drawn from different parts.
    """

    name: str
    read: Callable[[], Example]
    pool: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """An opened archive.

    Attributes:
        candidates: Starts over from the first candidate at every call.
        problems: What is wrong with the archive's tables, a row each.
        left_out: How many entries the kind's rule leaves out, by reason.
    """

    candidates: Callable[[], Iterator[Candidate]]
    problems: tuple[BadFileError, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of archive that can be imported.

    Attributes:
        name: Name on the command line; the store's ``sky``.
        task: Task that its labels answer; empty where the user has to say.
        labels: Whether the labels come as a table of their own.
        layout: The files it is made of, for the message about an archive without them.
        rule: How labels and pixels are made from the files; part of the recipe's digest.
        about: What the data are, where they come from and where their limits lie, for the card.
        shares: Sizes of the splits, as published.
        open: ``(path, task, labels) -> Collection``; ValueError if the archive as a whole is
            damaged or unsafe, or does not go with the task.
    """

    name: str
    task: str
    labels: Literal["inside", "inside or given", "given"] = "inside"
    layout: str
    rule: str
    about: str
    shares: Shares
    open: Callable[[Path, TaskSpec, Path | None], Collection]


def as_image(array: Pixels, name: str, task: TaskSpec) -> Pixels:
    """Return *array*, (H, W) or (C, H, W), as an image (C, H, W) of *task*.

    Raises:
        BadFileError: If it is of another shape, not of real numbers, or has one that is not
            finite in float32, as which networks see it.
    """
    if array.dtype.kind not in "iuf":
        raise BadFileError(f"{name} holds values of type {array.dtype}, not real numbers")
    image = array[np.newaxis] if array.ndim == 2 else array
    if image.shape != task.image_shape:
        raise BadFileError(
            f"{name} holds an image of shape {array.shape}, task {task.name} takes {task.image_shape}; "
            "name a task of that shape with --task"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(image.astype(np.float32)).all()
    if not finite:
        raise BadFileError(f"{name} has a pixel that is not finite")
    return image


def find_class(task: TaskSpec, class_name: str) -> int:
    """Return the label of *class_name*; ValueError if *task* has no such class."""
    if class_name not in task.classes:
        known = ", ".join(task.classes) or "none"
        raise ValueError(f"task {task.name} has no class {class_name!r}; its classes: {known}")
    return task.classes.index(class_name)


def check_target(task: TaskSpec, value: float, name: str) -> float:
    """Return *value*; BadFileError, naming *name*, if it cannot be one of the task's target."""
    if not task.targets:
        raise ValueError(f"task {task.name} wants classes, not values; name a regression task with --task")
    low, high = task.targets[0].valid
    if not low <= value <= high:
        raise BadFileError(f"{name}: {task.targets[0].name} is {value}, beyond [{low}, {high}]")
    return value
