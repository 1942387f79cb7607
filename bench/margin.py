"""How much less than eager fp32 a row's answers may be worth, and the verdict at that margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from bench.drift_facts import Drift, Estimate
from lensing_models.metrics import known_metrics
from lensing_models.registry import explain_unknown

DriftVerdict = Literal["non-inferior", "worse", "cannot tell", ""]
#: By judged metric: 0.5 % of the images, 0.002 of area, and 2 % of the reference's MSE.
MARGINS: Mapping[str, float] = {"accuracy": 0.005, "auc": 0.002, "mse": 0.02}
#: Metrics whose differences and margins are in units of the reference's value.
RELATIVE = frozenset({"mse"})


def parse_margins(text: str) -> dict[str, float]:
    """Return the margin of each judged metric as *text* changes it, e.g. ``accuracy=0.01,mse=0.05``.

    Raises:
        LookupError: If a metric is not judged.
        ValueError: If *text* is no such list, or a margin is not from 0 to below 1.
    """
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in MARGINS:
            raise LookupError(f"--margin: {explain_unknown('metric', name, MARGINS)}")
        if name in given:
            raise ValueError(f"--margin {text}: {name} is there twice")
        try:
            given[name] = float(number)
        except ValueError:
            given[name] = math.nan
        if not 0 <= given[name] < 1:
            raise ValueError(f"--margin {part}: give a fraction from 0 to below 1, e.g. {name}={MARGINS[name]}")
    return {**MARGINS, **given}


def read_margins(about: Mapping[str, object]) -> dict[str, float]:
    """Return the margins that the facts *about* a run name; the default ones for what they do not."""
    settings = about.get("settings")
    named = settings.get("margin") if isinstance(settings, Mapping) else None
    return {**MARGINS, **named} if isinstance(named, Mapping) else dict(MARGINS)


def judge_drift(drift: Drift | None, margins: Mapping[str, float]) -> DriftVerdict:
    """Return whether the answers are as good as the reference's, given *margins*.

    ``worse``: the whole interval of some metric's difference is beyond its margin. ``non-inferior``:
    the harmful end of each is within it. ``cannot tell``: neither. Empty where nothing was compared.
    """
    if drift is None:
        return ""
    harms = [(*_harm(difference), margins[difference.metric]) for difference in drift.differences]
    if any(least > margin for least, _, margin in harms):
        return "worse"
    # Written so that NaN, a metric that is not defined, cannot be told.
    return "non-inferior" if harms and all(most <= margin for _, most, margin in harms) else "cannot tell"


def _harm(difference: Estimate) -> tuple[float, float]:
    """Return the least and the most by which the metric is worse than the reference's."""
    if known_metrics()[difference.metric].better == "higher":
        return -difference.high, -difference.low
    return difference.low, difference.high
