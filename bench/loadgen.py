"""MLPerf LoadGen: one test of one session, and what its log says. Not an MLPerf submission.

LoadGen asks from the thread that starts the test, and takes answers from any thread. A session is
called by the thread that opened it alone: where LoadGen must go on asking meanwhile (``server``), it
is LoadGen that gets a thread of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import mlperf_loadgen

DETAIL = "mlperf_log_detail.txt"
LINE = ":::MLLOG "


def _nanoseconds(value_s: float) -> int:
    return round(1e9 * value_s)


def _milliseconds(value_s: float) -> int:
    return round(1e3 * value_s)


Setting = tuple[str, Callable[[float], float]]
#: Which of LoadGen's settings ours become, by scenario and by our names.
SETTINGS: Mapping[str, Mapping[str, Setting]] = {
    "single_stream": {"expected_latency_s": ("single_stream_expected_latency_ns", _nanoseconds)},
    "multi_stream": {
        "expected_latency_s": ("multi_stream_expected_latency_ns", _nanoseconds),
        "images_per_query": ("multi_stream_samples_per_query", int),
    },
    "server": {"rate_qps": ("server_target_qps", float), "p99_bound_s": ("server_target_latency_ns", _nanoseconds)},
    "offline": {"expected_img_s": ("offline_expected_qps", float), "min_images": ("min_query_count", int)},
}
EVERY: Mapping[str, Setting] = {
    "duration_s": ("min_duration_ms", _milliseconds),
    "most_s": ("max_duration_ms", _milliseconds),
    "min_queries": ("min_query_count", int),
}

Query = list[tuple[int, int]]
"""Of each sample the id that LoadGen knows it by, and which image it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadGenTest:
    """What LoadGen says of one test.

    Attributes:
        verdict: ``VALID`` or ``INVALID``.
        reason: What it holds against an invalid one, in its words.
        facts: Every value of its detail log, by its keys.
    """

    verdict: Literal["VALID", "INVALID"]
    reason: str
    facts: Mapping[str, Any]  # whatever LoadGen logs: numbers, texts, lists

    @property
    def is_valid(self) -> bool:
        """Return whether LoadGen passed it."""
        return self.verdict == "VALID"

    def number(self, key: str) -> float:
        """Return a logged number."""
        return float(self.facts[key])


def run_test(
    scenario: str,
    answer: Callable[[Sequence[int]], None],
    *,
    images: int,
    batch_size: int,
    settings: Mapping[str, float],
    logs: Path,
) -> LoadGenTest:
    """Return what LoadGen says of a session under *scenario*.

    Args:
        scenario: A scenario that LoadGen drives.
        answer: Runs the session on images of these numbers, at most *batch_size*, and waits for the outputs.
            What it raises spoils LoadGen for this process.
        images: Number of images that LoadGen chooses from.
        batch_size: Images of one call.
        settings: How the requests arrive, by the names in `SETTINGS` and `EVERY`; others are passed over.
        logs: Folder of LoadGen's logs; made if missing.

    Raises:
        RuntimeError: If LoadGen left no verdict.
    """
    import mlperf_loadgen as loadgen

    def serve(query: Query) -> None:
        for start in range(0, len(query), batch_size):
            part = query[start : start + batch_size]
            answer([image for _, image in part])
            # Without data: LoadGen looks at outputs in its accuracy mode only.
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample, 0, 0) for sample, _ in part])

    logs.mkdir(parents=True, exist_ok=True)
    start = _prepare(scenario, settings, images, logs)
    if scenario == "server":
        _start_aside(start, serve)
    else:
        start(serve)
    return read_log(logs / DETAIL)


def _prepare(
    scenario: str, settings: Mapping[str, float], images: int, logs: Path
) -> Callable[[Callable[[Query], None]], None]:
    """Return what runs the test to its end, given what takes a query."""
    import mlperf_loadgen as loadgen

    wanted = make_settings(scenario, settings)
    output, logging = loadgen.LogOutputSettings(), loadgen.LogSettings()
    output.outdir, output.copy_summary_to_stdout = str(logs), False
    logging.log_output, logging.enable_trace = output, False

    def start(take: Callable[[Query], None]) -> None:
        # Copied: LoadGen owns the samples and has them back when the callback returns.
        system = loadgen.ConstructSUT(lambda samples: take([(each.id, each.index) for each in samples]), lambda: None)
        library = loadgen.ConstructQSL(images, images, lambda numbers: None, lambda numbers: None)
        loadgen.StartTestWithLogSettings(system, library, wanted, logging)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)

    return start


def make_settings(scenario: str, settings: Mapping[str, float]) -> mlperf_loadgen.TestSettings:
    """Return LoadGen's settings for *scenario*; what *settings* does not say stays at its default."""
    import mlperf_loadgen as loadgen

    wanted = loadgen.TestSettings()
    wanted.mode = loadgen.TestMode.PerformanceOnly
    wanted.scenario = getattr(loadgen.TestScenario, scenario.title().replace("_", ""))
    for name, (theirs, convert) in {**EVERY, **SETTINGS[scenario]}.items():
        if name in settings:
            setattr(wanted, theirs, convert(settings[name]))
    return wanted


def _start_aside(start: Callable[[Callable[[Query], None]], None], serve: Callable[[Query], None]) -> None:
    """Run LoadGen in a thread of its own, and answer here what it asks, first come first served."""
    queries: SimpleQueue[Query | None] = SimpleQueue()

    def ask() -> None:
        try:
            start(queries.put)
        finally:
            queries.put(None)

    # A daemon: if an answer fails, LoadGen waits for it for ever, and the process must end all the same.
    asker = Thread(target=ask, daemon=True)
    asker.start()
    while (query := queries.get()) is not None:
        serve(query)
    asker.join()


def read_log(path: Path) -> LoadGenTest:
    """Return what the detail log in *path* says.

    Raises:
        RuntimeError: If it is missing or holds no verdict: the test did not come to its end.
    """
    facts: dict[str, Any] = {}  # whatever LoadGen logs
    errors = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith(LINE):
            entry = json.loads(line.removeprefix(LINE))
            facts[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"]:
                errors.append(str(entry["value"]))
    verdict = facts.get("result_validity")
    if verdict not in ("VALID", "INVALID"):
        raise RuntimeError(f"LoadGen left no verdict in {path.name}")
    reasons = [str(facts.get("result_invalid_reason", ""))]
    reasons += [str(facts.get("early_stopping_result", ""))] if not facts.get("early_stopping_met", True) else []
    text = " ".join(" ".join([*reasons, *errors]).replace(" * ", " ").split())
    return LoadGenTest(verdict=verdict, reason="" if verdict == "VALID" else text, facts=facts)
