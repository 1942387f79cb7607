"""What a data set is drawn from: the seam between `simulate` and the physics of lenses or galaxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensing_models.specs import TaskSpec

CatalogRow = dict[str, str | int | float | list[float]]
"""Columns of one image: a list where it has several of a thing, such as subhalos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One set of physical assumptions, and how images are made under it.

    Attributes:
        name: Name on the command line.
        digest: SHA-256 of every assumption.
        simulator: Version of the formulas behind `make`.
        origin: Where the numbers come from.
        limits: What the images cannot tell; it stands on the card of every data set.
        refuse: Says why it has no images for a task, or None where it has.
        batch: Images that are made together on a device: 1 where each must not depend on the others.
        make: ``(task, indices, streams, device) -> (counts (B, C, H, W), rows)`` for consecutive
            images of a split, from the streams of these images alone; a row holds ``label``,
            ``class`` and every true parameter.
    """

    name: str
    digest: str
    simulator: int
    origin: str
    limits: str
    refuse: Callable[[TaskSpec], str | None]
    batch: Callable[[str], int]
    make: Callable[
        [TaskSpec, Sequence[int], Sequence[np.random.Generator], str], tuple[NDArray[np.uint16], list[CatalogRow]]
    ]
