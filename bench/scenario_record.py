"""What a run leaves of one case under one kind of arrivals. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.records import SCHEMA, Case, Scalar, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioRecord:
    """One measured case under one kind of arrivals (``bench/scenario.py``).

    Attributes:
        recorded_at: ISO 8601 time, UTC.
        reason: Why it is skipped or failed, or what LoadGen holds against an invalid test.
        verdict: MLPerf LoadGen's own, ``VALID`` or ``INVALID``; empty where it did not drive.
        metrics: What came out, with the unit in the name; what was not measured is missing.
        settings: How the requests arrived, with the unit in the name.
        environment: Fingerprint, as in the case's record.
    """

    schema: int = SCHEMA
    run: str
    recorded_at: str
    case: Case
    scenario: str
    status: Status
    reason: str = ""
    verdict: Literal["VALID", "INVALID", ""] = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    environment: str = ""
