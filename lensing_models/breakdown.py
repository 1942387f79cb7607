"""On which true parameters of the images the errors of a network depend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from lensing_models.specs import FloatArray, TaskSpec

FIFTHS = 5
FEWEST = 50  # images of a class, below which fifths say nothing
FALSE_DISCOVERIES = 0.05  # share among what is reported
NO_PARAMETERS = ("index", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dependence:
    """The error in each fifth of the images of one class, by one true parameter.

    Attributes:
        lens_class: The true class.
        parameter: Column of the catalogue, or one derived from it: see `true_parameters`.
        edges: (6,) values between the fifths, smallest and largest at the ends.
        errors: (5,) share of wrong answers, or rms error of the target.
        images: (5,) numbers of images.
        p_value: Probability of a difference at least as large if the error did not depend on it.
        q_value: Share of false discoveries if everything with this p value or a smaller one is
            reported (Benjamini and Hochberg 1995).
    """

    lens_class: str
    parameter: str
    edges: tuple[float, ...]
    errors: tuple[float, ...]
    images: tuple[int, ...]
    p_value: float
    q_value: float = np.nan


def break_down(task: TaskSpec, catalog: pd.DataFrame, outputs: FloatArray) -> list[Dependence]:
    """Return how the error depends on each true parameter, the least likely to be chance first.

    A classification's fifths are compared by a chi-squared test of wrong answers (Pearson 1900),
    a regression's by a rank test of the absolute errors (Kruskal and Wallis 1952).

    Args:
        task: Its kind says what an error is.
        catalog: (N rows) of the images, as a store holds them.
        outputs: (N, K) as for `metrics.score`.
    """
    labels = catalog["label"].to_numpy()
    if task.kind == "classification":
        error = (outputs.argmax(axis=1) != labels).astype(np.float64)
    else:
        error = 10.0 ** outputs[:, 0].astype(np.float64) - labels
    parameters = true_parameters(catalog)
    found = []
    for name in catalog["class"].unique():
        members = (catalog["class"] == name).to_numpy()
        for column in parameters.columns if members.sum() >= FEWEST else ():
            if dependence := _depends(task, name, column, parameters.loc[members, column], error[members]):
                found.append(dependence)
    if not found:
        return []
    q_values = stats.false_discovery_control([row.p_value for row in found])
    return sorted(
        (dataclasses.replace(row, q_value=float(value)) for row, value in zip(found, q_values, strict=True)),
        key=lambda row: row.p_value,
    )


def true_parameters(catalog: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of *catalog* that tell one image from another, and some that follow from them.

    These are the source's distance from the axis and axis ratio; the angle between a vortex and
    the x axis, 0 to pi/2, along which most skies shear; Einstein radius of the heaviest subhalo
    and its distance from the Einstein ring of the main lens [arcsec].
    """
    columns = catalog.select_dtypes("number").drop(columns=[*NO_PARAMETERS], errors="ignore").astype(np.float64)
    if {"source_x", "source_y", "source_e1", "source_e2"} <= set(columns):
        ellipticity = np.hypot(columns["source_e1"], columns["source_e2"])
        columns["source_offset"] = np.hypot(columns["source_x"], columns["source_y"])
        columns["source_q"] = (1 - ellipticity) / (1 + ellipticity)
    if "vortex_angle" in columns:
        columns["vortex_angle_to_x"] = np.arccos(np.abs(np.cos(columns["vortex_angle"])))
    if "subhalo_theta_E" in catalog:
        heaviest = [
            _heaviest(*row) for row in zip(*(catalog[f"subhalo_{x}"] for x in ("theta_E", "x", "y")), strict=True)
        ]
        columns["heaviest_theta_E"] = [theta for theta, _ in heaviest]
        columns["heaviest_to_ring"] = np.abs(np.array([radius for _, radius in heaviest]) - columns["theta_E"])
    return columns


def _heaviest(theta_e: Sequence[float], x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return Einstein radius of the heaviest subhalo and its distance from the centre; NaN without one."""
    if not len(theta_e):
        return np.nan, np.nan
    first = int(np.argmax(theta_e))
    return float(theta_e[first]), float(np.hypot(x[first], y[first]))


def _depends(
    task: TaskSpec, lens_class: str, parameter: str, values: pd.Series[float], error: NDArray[np.float64]
) -> Dependence | None:
    """Return the dependence, or None where the parameter does not vary or no error does."""
    known = values.notna().to_numpy()
    value, error = values.to_numpy()[known], error[known]
    if len(value) < FEWEST or np.ptp(value) == 0:
        return None
    edges = np.quantile(value, np.linspace(0, 1, FIFTHS + 1))
    fifth = np.searchsorted(edges[1:-1], value, side="right")
    parts = [error[fifth == index] for index in range(FIFTHS)]
    if min(map(len, parts)) == 0:
        return None
    if task.kind == "classification":
        wrong = np.array([part.sum() for part in parts])
        if wrong.sum() in (0, len(value)):
            return None
        p_value = stats.chi2_contingency(np.stack([wrong, [len(part) for part in parts] - wrong])).pvalue
        errors = [float(part.mean()) for part in parts]
    else:
        p_value = stats.kruskal(*[np.abs(part) for part in parts]).pvalue
        errors = [float(np.sqrt(np.mean(part**2))) for part in parts]
    return Dependence(
        lens_class=lens_class,
        parameter=parameter,
        edges=tuple(map(float, edges)),
        errors=tuple(errors),
        images=tuple(map(len, parts)),
        p_value=float(p_value),
    )


def render_breakdown(task: TaskSpec, rows: Sequence[Dependence]) -> str:
    """Return a table of the dependences that are hardly chance."""
    if not rows:
        return f"no class has {FEWEST} images and some errors among them: too few to compare fifths"
    told = [row for row in rows if row.q_value <= FALSE_DISCOVERIES]
    what = "share of wrong answers" if task.kind == "classification" else "rms error"
    if not told:
        return f"of {len(rows)} comparisons none shows a dependence of the {what} on a true parameter"
    head = f"{what} in the fifths of a class by a true parameter; {len(told)} of {len(rows)} comparisons"
    lines = [f"{head}, at most {FALSE_DISCOVERIES:.0%} of them by chance"]
    for row in told:
        fifths = "  ".join(f"{value:.3g}" for value in row.errors)
        span = f"{row.edges[0]:.3g} to {row.edges[-1]:.3g}"
        lines.append(f"{row.lens_class:<12}{row.parameter:<20}{span:<24}{fifths:<44}p {row.p_value:.1g}")
    return "\n".join(lines)
