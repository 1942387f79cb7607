"""What a worker process answers; no torch here, for the parent reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.drift_facts import Estimate
from bench.memory import Peak
from bench.records import Parity, Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Answer to `open`: the session of one batch size stands, its outputs have been compared."""

    prepare_s: float
    artifact_bytes: int | None
    parity: Parity | None
    failure: str
    artifact_cached: bool | None = None
    first_inference_s: float | None = None
    host: Peak = field(default_factory=Peak)
    gpu: Peak = field(default_factory=Peak)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Answer to `score`: quality of the outputs on the test split, or what is wrong with them.

    With it comes what the session that was scored, the first of its network, took to build, and in which precision
    it says that it ran.
    """

    quality: Mapping[str, float] = field(default_factory=dict)
    intervals: tuple[Estimate, ...] = ()
    images: int = 0
    failure: str = ""
    build_s: float = math.nan
    artifact_cached: bool | None = None
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
