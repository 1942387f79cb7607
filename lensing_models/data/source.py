"""What a data set is drawn from: the seam between `simulate` and the physics of lenses or galaxies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensing_models.specs import TaskSpec

CatalogRow = dict[str, str | int | float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One set of physical assumptions, and how an image is drawn under it.

    Attributes:
        name: Name on the command line.
        digest: SHA-256 of every assumption.
        simulator: Version of the formulas behind `draw`.
        source: Where the numbers come from.
        limits: What the images cannot tell; it stands on the card of every data set.
        refuse: Says why it has no images for a task, or None where it has.
        draw: ``(task, index, rng) -> (counts (C, H, W), row)`` for image *index* of a split, from
            the image's own stream alone; the row holds ``label``, ``class`` and every true parameter.
    """

    name: str
    digest: str
    simulator: int
    source: str
    limits: str
    refuse: Callable[[TaskSpec], str | None]
    draw: Callable[[TaskSpec, int, np.random.Generator], tuple[NDArray[np.uint16], CatalogRow]]
