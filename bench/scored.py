"""What a row's evidence keeps of the session that was scored, and how a timed one is held to it."""

from __future__ import annotations

from collections.abc import Mapping

from bench.quantize import FLOATS
from bench.records import Scalar

#: What the session that was scored and one that is timed must have in common.
SHARED = ("precision", FLOATS)
#: Facts that are kept of the session that was scored, in a row's evidence behind `SCORED`.
KEPT, SCORED = (*SHARED, "fallback"), "scored_"


def scored_facts(evidence: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return what a row's *evidence* holds of the session that was scored, by the names there."""
    return {name: evidence[f"{SCORED}{name}"] for name in KEPT if f"{SCORED}{name}" in evidence}


def hold_to_scored(evidence: Mapping[str, Scalar], scored: Mapping[str, Scalar]) -> str:
    """Return how a session with this *evidence* is another one than that which was *scored*, or an empty text."""
    if scored.get("fallback"):
        return f"of the session that was scored: {scored['fallback']}"
    for name in SHARED:
        if name in scored and scored[name] != evidence.get(name):
            return f"scored with {name} {scored[name]}, timed with {evidence.get(name)}"
    return ""
