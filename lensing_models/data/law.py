"""How a quantity is distributed: a number, or one of these, from which each image draws."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, slots=True)
class Uniform:
    """Drawn evenly from *low* to *high*."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return (count,) draws."""
        return rng.uniform(self.low, self.high, count)


@dataclass(frozen=True, slots=True)
class CutNormal:
    """A normal distribution of *mean* and *sd* before the cut; nothing lies outside *low* to *high*."""

    mean: float
    sd: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return (count,) draws, by the inverse of the distribution function."""
        low, high = (special.ndtr((edge - self.mean) / self.sd) for edge in (self.low, self.high))
        quantiles: NDArray[np.float64] = special.ndtri(rng.uniform(low, high, count))
        return np.clip(self.mean + self.sd * quantiles, self.low, self.high)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A probability density that goes as the quantity to the power *slope*, which is not -1."""

    low: float
    high: float
    slope: float

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return (count,) draws, by the inverse of the distribution function."""
        power = self.slope + 1
        return rng.uniform(self.low**power, self.high**power, count) ** (1 / power)


@dataclass(frozen=True, slots=True)
class Poisson:
    """A number of things with this *mean*; a draw of none is drawn again."""

    mean: float

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Return (count,) draws, whole and positive."""
        drawn = rng.poisson(self.mean, count)
        while not drawn.all():
            drawn = np.where(drawn, drawn, rng.poisson(self.mean, count))
        return drawn.astype(np.float64)


Law = float | Uniform | CutNormal | PowerLaw | Poisson
"""A plain number is fixed and takes nothing from the random stream."""

ANY_ANGLE = Uniform(0.0, 2 * math.pi)  # [rad]


def is_fixed(law: Law) -> bool:
    """Return whether *law* is a plain number."""
    return isinstance(law, float | int)


def draw_value(law: Law, rng: np.random.Generator) -> float:
    """Return one value of *law*."""
    return law if isinstance(law, float | int) else float(law.draw(rng, 1)[0])


def draw_values(law: Law, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Return (count,) values of *law*."""
    return np.full(count, float(law)) if isinstance(law, float | int) else law.draw(rng, count)


def digest_assumptions(physics: Any, *, words: tuple[str, ...]) -> str:  # Any: whichever dataclass holds the laws
    """Return the SHA-256 of every field of a dataclass, laws with their kind, but for its *words*."""
    names = [field.name for field in dataclasses.fields(physics) if field.name not in words]
    facts = ", ".join(f"{name}={getattr(physics, name)!r}" for name in names)
    return hashlib.sha256(facts.encode()).hexdigest()
