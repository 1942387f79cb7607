"""How requests arrive: MLPerf's four scenarios and two of ours; which case runs which, for how long. No torch here.

| scenario | requests arrive | cases | what is asked |
|---|---|---|---|
| ``single_stream`` | one image, the next when it is answered | batch 1 | latency |
| ``multi_stream`` | eight images, the next eight when they are answered | batch 1 | latency of the eight |
| ``server`` | one image at random times (Poisson) | batch 1 | highest rate whose p99 latency keeps a bound |
| ``offline`` | all images at once | larger batches | throughput |
| ``idle_gap`` | one image 0.1 s after the last answer | batch 1 | latency after idling, over that without |
| ``burst`` | 64 images at once, after idling | all | time until the last is answered |

The first four are driven by MLPerf LoadGen (``bench/loadgen.py``), the last two by us. A session has
one batch size: a larger one cannot answer a single image, and batch 1 offline is single_stream again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from bench.backends.base import installed
from bench.records import Case, RunRecord
from bench.statistic import FEWEST_SAMPLES, latency_p50
from lensing_models.registry import split_names

#: By name, whether LoadGen drives it.
SCENARIOS: Mapping[str, bool] = {
    "single_stream": True,
    "multi_stream": True,
    "server": True,
    "offline": True,
    "idle_gap": False,
    "burst": False,
}
#: Images of a query in ``multi_stream`` (MLPerf Inference rules, section "Scenarios").
STREAM_IMAGES = 8
BURST_IMAGES = 64
#: Idling before each request of ``idle_gap`` and before each burst [s].
REST_S = 0.1
#: Latency that LoadGen is told to expect, over the p50: it makes its queries beforehand, and ends
#: early, INVALID, when it runs out of them.
EXPECTED = 0.8
#: Default of the bound on the p99 latency in ``server``, over the p50, before it is rounded up.
BOUND = 5.0
#: Fewest batches of ``offline``.
OFFLINE_BATCHES = 4
#: What a scenario may take, over what is expected and on top [s], before its worker is taken for hung.
PATIENCE, PATIENCE_S = 10.0, 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much a scenario is measured, by preset.

    Attributes:
        duration_s: Shortest LoadGen test [s].
        most_s: Time after which a LoadGen test asks no more, INVALID, and no burst follows [s].
        trials: Rates that ``server`` tries.
        requests: Requests of ``idle_gap``.
        repeats: Bursts.
    """

    duration_s: float
    most_s: float
    trials: int
    requests: int
    repeats: int


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(duration_s=2.0, most_s=20.0, trials=5, requests=20, repeats=3),
    "standard": Effort(duration_s=10.0, most_s=120.0, trials=6, requests=100, repeats=7),
    "reference": Effort(duration_s=60.0, most_s=600.0, trials=7, requests=600, repeats=15),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedScenario:
    """A measured case under one scenario.

    Attributes:
        case: The case.
        scenario: A key of `SCENARIOS`.
        skip_reason: Why it will be skipped; empty if it will be measured.
        settings: How the requests arrive, with the unit in the name.
        expected_s: About how long it takes [s].
    """

    case: Case
    scenario: str
    skip_reason: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)
    expected_s: float = 0.0

    @property
    def patience_s(self) -> float:
        """Return the time after which the worker is taken for hung [s]."""
        return PATIENCE_S + PATIENCE * self.expected_s


def parse_scenarios(text: str) -> list[str]:
    """Return the scenarios of a comma list in the order of `SCENARIOS`; none for an empty text.

    Raises:
        LookupError: If a name is unknown.
    """
    if not text.strip():
        return []
    names = split_names("scenario", text, SCENARIOS) or list(SCENARIOS)
    return [name for name in SCENARIOS if name in names]


def suits(scenario: str, case: Case) -> bool:
    """Return whether *scenario* makes sense for the batch size of *case*."""
    return scenario == "burst" or (scenario == "offline") == (case.batch_size > 1)


def plan_scenarios(
    records: Iterable[RunRecord], scenarios: Sequence[str], effort: Effort, p99_s: float | None = None
) -> list[PlannedScenario]:
    """Return what is to be measured of the cases of *records* that were timed, case by case.

    Args:
        records: Their p50 calibrates.
        scenarios: Keys of `SCENARIOS`.
        effort: How much is measured.
        p99_s: Bound on the p99 latency in ``server`` [s]; None for one that follows from the p50.
    """
    missing = installed("mlcommons-loadgen", remedy="pip install 'lensing-bench[mlperf]'").reason
    planned = []
    for record in records:
        if record.timing is None:
            continue
        p50_s = latency_p50(record.timing).point
        for scenario in scenarios:
            if suits(scenario, record.case):
                plan = _plan(scenario, record.case, p50_s, effort, p99_s)
                planned.append(replace(plan, skip_reason=missing) if SCENARIOS[scenario] and missing else plan)
    return planned


def _plan(scenario: str, case: Case, p50_s: float, effort: Effort, p99_s: float | None) -> PlannedScenario:
    """Return the plan of one scenario for *case*, whose call takes *p50_s* [s]."""
    if scenario == "server":
        return _plan_server(case, p50_s, effort, p99_s)
    if scenario == "offline":
        least = OFFLINE_BATCHES * case.batch_size
        settings = {"p50_s": p50_s, "min_images": least, "duration_s": effort.duration_s}
        expected_s = max(2 * effort.duration_s, OFFLINE_BATCHES * p50_s)
    elif scenario == "idle_gap":
        settings = {"rest_s": REST_S, "requests": effort.requests}
        expected_s = effort.requests * (REST_S + p50_s)
    elif scenario == "burst":
        settings = {"images": BURST_IMAGES, "rest_s": REST_S, "repeats": effort.repeats, "most_s": effort.most_s}
        expected_s = effort.repeats * (REST_S + burst_calls(case.batch_size) * p50_s)
    else:
        images, percent = (STREAM_IMAGES, 99) if scenario == "multi_stream" else (1, 90)
        queries = FEWEST_SAMPLES[percent]
        settings = {"p50_s": p50_s, "images_per_query": images, "min_queries": queries}
        settings |= {"duration_s": effort.duration_s, "most_s": effort.most_s}
        expected_s = max(effort.duration_s, min(queries * images * p50_s, effort.most_s))
    return PlannedScenario(case=case, scenario=scenario, settings=settings, expected_s=expected_s)


def _plan_server(case: Case, p50_s: float, effort: Effort, p99_s: float | None) -> PlannedScenario:
    """Return the plan of ``server``: between the least rate that can be judged and one call after the other."""
    queries = FEWEST_SAMPLES[99]
    least = queries / effort.most_s
    settings = {
        "p50_s": p50_s,
        "p99_bound_s": p99_s or round_up(BOUND * p50_s),
        "min_queries": queries,
        "duration_s": effort.duration_s,
        "least_rate_qps": least,
        "trials": effort.trials,
    }
    slow = f"{queries} queries take {queries * p50_s:.0f} s or more at the recorded latency; "
    slow += f"this preset allows {effort.most_s:.0f} s a trial"
    return PlannedScenario(
        case=case,
        scenario="server",
        skip_reason=slow if least * p50_s >= 1 else "",
        settings=settings,
        expected_s=effort.trials * max(effort.duration_s, min(2 * queries * p50_s, effort.most_s)),
    )


def calibrate(scenario: str, p50_s: float, batch_size: int, images_per_query: float = 1) -> dict[str, float]:
    """Return what LoadGen must be told of a session whose call takes *p50_s* [s]: the settings that no plan knows."""
    if scenario == "server":
        return {"most_rate_qps": 1 / p50_s}
    if scenario == "offline":
        return {"expected_img_s": batch_size / (EXPECTED * p50_s)}
    return {"expected_latency_s": EXPECTED * images_per_query * p50_s}


def burst_calls(batch_size: int) -> int:
    """Return how many calls answer a burst."""
    return math.ceil(BURST_IMAGES / batch_size)


def round_up(value: float) -> float:
    """Return *value* rounded up to one significant digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.6g}")


class Judged(Protocol):
    """Whatever LoadGen passed or did not."""

    @property
    def is_valid(self) -> bool:
        """Return whether it passed."""
        ...


Trial = TypeVar("Trial", bound=Judged)


def search_rate(attempt: Callable[[float], Trial], low: float, high: float, trials: int) -> list[tuple[float, Trial]]:
    """Return the rates that bisection between *low* and *high* tried, each with what came of it.

    It goes up after a valid trial, down after any other; the best rate is the highest valid one.
    """
    tried: list[tuple[float, Trial]] = []
    for _ in range(trials):
        rate = (low + high) / 2
        trial = attempt(rate)
        tried.append((rate, trial))
        low, high = (rate, high) if trial.is_valid else (low, rate)
    return tried
