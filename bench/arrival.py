"""Inside a worker: the session that is open, under one kind of arrivals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.loadgen import LoadGenTest, run_test
from bench.measure import Clock
from bench.records import Case, Scalar
from bench.scenario import burst_calls, calibrate, search_rate
from bench.statistic import FEWEST_SAMPLES

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session

#: Test images that LoadGen chooses from.
LIBRARY_IMAGES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a scenario gave: the parts of a `ScenarioRecord`, the settings being those that the plan did not know."""

    metrics: Mapping[str, float]
    verdict: Literal["VALID", "INVALID", ""] = ""
    reason: str = ""
    settings: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """A session and what it is asked.

    Attributes:
        session: Open, for *case*.
        clock: Of that session.
        images: Test images (N, C, H, W) float32 in [0, 1] on the CPU; the first `LIBRARY_IMAGES` are used.
        logs: Folder that LoadGen's logs may use.
    """

    session: Session
    case: Case
    clock: Clock
    images: torch.Tensor
    logs: Path

    def run(self, scenario: str, settings: Mapping[str, float]) -> Outcome:
        """Return what *scenario* makes of the session; *settings* are those of its plan."""
        self.clock.warm_up()
        if scenario == "idle_gap":
            return self._idle(settings)
        if scenario == "burst":
            return self._burst(settings)
        # The recorded latency may be one beside other work; a session faster than it would leave
        # LoadGen without queries.
        p50_s = min(settings["p50_s"], statistics.median(self.clock.block()))
        found = calibrate(scenario, p50_s, self.case.batch_size, settings.get("images_per_query", 1))
        wanted = {**settings, **found}
        if scenario == "server":
            outcome = self._search(wanted)
        else:
            outcome = _outcome(scenario, self._tester(scenario)(wanted, self.logs))
        return replace(outcome, settings={**found, **outcome.settings})

    def _idle(self, settings: Mapping[str, float]) -> Outcome:
        """Return the latency after idling, and its ratio to that of calls just before and after."""
        before = self.clock.block()
        rested = self.clock.rested(int(settings["requests"]), settings["rest_s"])
        p50_s, busy_s = statistics.median(rested), statistics.median((*before, *self.clock.block()))
        return Outcome(
            metrics={"latency_p50_s": p50_s, "back_to_back_p50_s": busy_s, "ratio_to_back_to_back": p50_s / busy_s}
        )

    def _burst(self, settings: Mapping[str, float]) -> Outcome:
        """Return the median time until a burst is answered; no burst follows after `most_s`."""
        calls = burst_calls(self.case.batch_size)
        times_s: list[float] = []
        while len(times_s) < settings["repeats"] and sum(times_s) < settings["most_s"]:
            times_s.append(self.clock.burst(calls, settings["rest_s"]))
        last_s = statistics.median(times_s)
        speed = settings["images"] / last_s
        return Outcome(metrics={"time_to_last_s": last_s, "throughput_img_s": speed, "bursts": len(times_s)})

    def _search(self, settings: Mapping[str, float]) -> Outcome:
        """Return the highest rate that LoadGen calls valid, or what it holds against the lowest one tried."""
        test = self._tester("server")

        def attempt(rate_qps: float) -> LoadGenTest:
            return test({**settings, "rate_qps": rate_qps}, self.logs / f"{rate_qps:g}")

        bounds = settings["least_rate_qps"], settings["most_rate_qps"]
        tried = search_rate(attempt, *bounds, trials=int(settings["trials"]))
        valid = [pair for pair in tried if pair[1].is_valid]
        rate_qps, best = max(valid, key=itemgetter(0)) if valid else min(tried, key=itemgetter(0))
        found = _outcome("server", best)
        metrics = {"trials": len(tried), "target_rate_qps": rate_qps, **found.metrics}
        if valid:
            return replace(found, metrics=metrics)
        del metrics["rate_qps"]
        reason = f"no rate was valid; at {rate_qps:.3g} a second, the lowest tried: {found.reason}"
        return replace(found, metrics=metrics, reason=reason)

    def _tester(self, scenario: str) -> Callable[[Mapping[str, float], Path], LoadGenTest]:
        """Return what makes a LoadGen test, given its settings and the folder of its logs."""
        import torch

        batch, session = self.case.batch_size, self.session
        library = self.images[:LIBRARY_IMAGES].to(self.case.device)
        singles = torch.split(library, 1)

        def answer(numbers: Sequence[int]) -> None:
            padded = [*numbers, *[numbers[-1]] * (batch - len(numbers))]
            images = singles[numbers[0]] if batch == 1 else library[padded]
            session.infer(images)
            session.synchronize()  # until then a runtime may read them where they lie

        def test(settings: Mapping[str, float], logs: Path) -> LoadGenTest:
            return run_test(scenario, answer, images=len(library), batch_size=batch, settings=settings, logs=logs)

        return test


def _outcome(scenario: str, test: LoadGenTest) -> Outcome:
    """Return what a LoadGen *test* says."""
    return Outcome(
        metrics=read_metrics(scenario, test),
        verdict=test.verdict,
        reason=test.reason,
        settings={"loadgen": str(test.facts["loadgen_version"])},
    )


def read_metrics(scenario: str, test: LoadGenTest) -> dict[str, float]:
    """Return the figures of a LoadGen *test*: times in seconds, percentiles only from samples enough for them.

    ``latency_p90_estimate_s`` and ``latency_p99_estimate_s`` are what MLPerf would publish: the
    percentile, raised until it holds with 99 % confidence.
    """
    if scenario == "offline":
        return {
            "throughput_img_s": test.number("result_samples_per_second"),
            "images": test.number("generated_samples_per_query"),
        }
    queries = test.number("result_query_count")
    of_query = "per_query_" if scenario == "multi_stream" else ""
    metrics = {"queries": queries}
    for percent in (50, 90, 99):
        if queries >= FEWEST_SAMPLES.get(percent, 1):
            metrics[f"latency_p{percent}_s"] = test.number(f"result_{percent}.00_percentile_{of_query}latency_ns") / 1e9
    if scenario == "server":
        return {**metrics, "rate_qps": test.number("result_completed_samples_per_sec")}
    percent, theirs = (99, "ms") if scenario == "multi_stream" else (90, "ss")
    if estimate_ns := test.number(f"early_stopping_latency_{theirs}"):
        metrics[f"latency_p{percent}_estimate_s"] = estimate_ns / 1e9
    images = test.number("generated_samples_per_query")
    return {
        **metrics,
        "throughput_img_s": 1e9 * images / test.number(f"result_mean_{'query_' if of_query else ''}latency_ns"),
    }
