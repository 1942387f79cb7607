"""The workers of one network: scored side by side, then opened one by one for what is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from bench.answer import Opened, Scored
from bench.drift_facts import Drift, Estimate
from bench.job import Job
from bench.knob import Settings, untuned
from bench.largest import Largest
from bench.parity import PARITY_IMAGES, worse_of
from bench.process import Oversight, Worker, WorkerError
from bench.records import Case, Measurement, Parity, RunRecord, Scalar
from bench.scored import scored_facts

#: Fewest images on which a session that is timed is compared; the scored one is on `PARITY_IMAGES`.
COMPARED_IMAGES = 32


@dataclass(kw_only=True, slots=True)
class Crew:
    """A worker that is alive, and what is known of its network through its backend.

    Attributes:
        case: What is open, or was tried last.
        opened: The session that is open.
        built: An earlier one of the same case, which had to build what the open one loaded.
        settings: Of the runtime in the open one.
        worst_opened: The largest error of the sessions that were opened for the case.
        scored_evidence: What the session that was scored says (`bench.scored.KEPT`).
    """

    worker: Worker
    quality: Mapping[str, float]
    quality_images: int
    parity: Parity | None
    quality_intervals: tuple[Estimate, ...] = ()
    drift: Drift | None = None
    build_s: float = math.nan
    artifact_cached: bool | None = None
    case: Case | None = None
    opened: Opened | None = None
    built: Opened | None = None
    settings: Settings = field(default_factory=dict)
    worst_opened: Parity | None = None
    scored_evidence: Mapping[str, Scalar] = field(default_factory=dict)

    def open(self, case: Case, settings: Settings | None = None) -> str:
        """Have the session of *case* made by a fresh process, and compared; return what is wrong with it, if anything.

        Fresh, so that its first call is the first of a process, and its memory nobody else's. Where that
        process had to build what belongs to this batch size or number of threads alone, another one loads it.
        The runtime has its *settings*, or its defaults.
        """
        if case != self.case:
            self.built, self.worst_opened = None, None
        self.case, self.opened, self.settings = case, None, settings or {}
        try:
            self.opened = self._open_afresh(case)
            if self.opened.artifact_cached is False and not self.opened.failure:
                self.built, self.opened = self.opened, self._open_afresh(case)
        except WorkerError as error:
            self.opened = None
            return str(error)
        return self.opened.failure

    def _open_afresh(self, case: Case) -> Opened:
        # Nothing is lost: what was scored lies in a file.
        self.worker = self.worker.restarted(self.settings)
        answer: Opened = self.worker.ask("open", case.batch_size, case.threads, compared_images(case))
        self.worst_opened = worse_of(self.worst_opened, answer.parity)
        return answer

    @property
    def worst_parity(self) -> Parity | None:
        """Return the larger error of the scored session and of those that were opened for the case."""
        return worse_of(self.parity, self.worst_opened)

    def measurement(
        self,
        evidence: Mapping[str, Scalar],
        input_digest: str,
        largest: Largest | None = None,
        earlier: Measurement | None = None,
    ) -> Measurement:
        """Return what is known of the open session beside its timing.

        Args:
            evidence: Of the session.
            input_digest: Of the images in rotation.
            largest: What the search for the largest batch found.
            earlier: Of the same case, which is measured once more: the build that it tells of is not repeated.
        """
        assert self.opened is not None
        known = earlier or self
        build_s, was_cached = known.build_s, known.artifact_cached
        if self.built:
            build_s, was_cached = self.built.prepare_s, False
        return Measurement(
            build_s=build_s,
            artifact_bytes=self.opened.artifact_bytes,
            evidence=evidence,
            input_digest=input_digest,
            artifact_cached=was_cached,
            load_s=self.opened.prepare_s,
            first_inference_s=self.opened.first_inference_s,
            peak_host_bytes=self.opened.host.used_bytes,
            peak_host_source=self.opened.host.source,
            peak_device_bytes=self.opened.gpu.used_bytes,
            peak_device_source=self.opened.gpu.source,
            largest_batch=largest.batch if largest else None,
            largest_batch_end=largest.end if largest else "",
        )


def compared_images(case: Case) -> int:
    """Return the number of test images on which a session that is timed is compared."""
    return min(max(case.batch_size, COMPARED_IMAGES), PARITY_IMAGES)


class WrongOutputsError(WorkerError):
    """A session's outputs are not those of the network."""

    def __init__(self, reason: str, parity: Parity | None = None) -> None:
        super().__init__(reason)
        self.parity = parity


def score_together(
    jobs: Sequence[Job],
    *,
    scored: Mapping[str, RunRecord],
    with_reference: bool,
    say: Callable[[str], None],
    oversight: Oversight,
) -> dict[str, Crew | WorkerError]:
    """Start a worker for each of *jobs*, score it and compare it with the reference; nothing is timed yet.

    Those that differ in their settings alone, a tuned case and the default one, share what was scored, once and
    with the defaults: the answers of the other are held against it when its session is opened.

    On a CPU as many work at a time as a case has threads, with one thread each: the same cores, and
    none waits for another. A batch of one image gains little from a second thread.

    Args:
        jobs: One for each worker, all of one network.
        scored: Records of an earlier attempt by the worker key of the default one; such workers are not scored again.
        with_reference: Whether the reference outputs are computed, among the rest; if not, they are there.
        say: Told what begins.
        oversight: What each worker may take.

    Returns:
        By worker key the crew, whose worker the caller closes, or why there is none.
    """
    case = jobs[0].case
    slots, threads = (case.threads, 1) if case.device == "cpu" else (1, case.threads)
    scoring: dict[str, Job] = {}
    for job in jobs:
        scoring.setdefault(untuned(job.case).worker_key, replace(job, settings={}))
    workers = {name: Worker(job, oversight) for name, job in scoring.items()}
    helper = Worker(jobs[0], oversight) if with_reference else None

    def compute_reference(helper: Worker) -> None:
        say(f"reference {case.task}/{case.network}")
        helper.ask("reference", threads)

    def score(name: str) -> Scored:
        say(f"score {name}")
        workers[name].ask("open", scoring[name].case.batch_size, threads, 0)
        answer: Scored = workers[name].ask("score")
        return answer

    with ThreadPoolExecutor(slots) as pool, ExitStack() as abandon:
        # On Ctrl-C the threads would wait for minutes of scoring.
        for worker in (*workers.values(), *([helper] if helper else [])):
            abandon.callback(worker.kill)
        abandon.callback(pool.shutdown, wait=False, cancel_futures=True)
        reference = pool.submit(compute_reference, helper) if helper else None
        futures = {name: pool.submit(score, name) for name in scoring if name not in scored}
        for future in (reference, *futures.values()):
            if future:
                future.exception()
        abandon.pop_all()
    if helper:
        helper.close()
    answers: dict[str, Crew | WorkerError] = {}
    for name, worker in workers.items():
        try:
            if reference and (failure := reference.exception()):
                raise WorkerError(f"no reference outputs: {failure}")
            answers[name] = (
                _crew_of_earlier(worker, scored[name]) if name in scored else _crew_of(worker, futures[name])
            )
        except WorkerError as error:
            worker.close()
            answers[name] = error
    return {
        job.case.worker_key: _with_own_worker(answers[untuned(job.case).worker_key], job, oversight) for job in jobs
    }


def _with_own_worker(answer: Crew | WorkerError, job: Job, oversight: Oversight) -> Crew | WorkerError:
    """Return *answer*; a crew whose worker is that of *job*, which another one may have been scored for."""
    if isinstance(answer, WorkerError) or answer.worker.job.case.worker_key == job.case.worker_key:
        return answer
    return replace(answer, worker=Worker(job, oversight))


def _crew_of(worker: Worker, future: Future[Scored]) -> Crew:
    """Return the crew of a *worker* that was scored.

    Raises:
        WorkerError: If it was not, or its outputs are wrong.
    """
    answer = future.result()
    if answer.failure:
        raise WrongOutputsError(answer.failure)
    parity, failure = worker.ask("compare")
    if failure:
        raise WrongOutputsError(failure, parity)
    return Crew(
        worker=worker,
        quality=answer.quality,
        quality_images=answer.images,
        parity=parity,
        quality_intervals=answer.intervals,
        drift=worker.ask("drift"),
        build_s=answer.build_s,
        artifact_cached=answer.artifact_cached,
        scored_evidence=answer.evidence,
    )


def _crew_of_earlier(worker: Worker, record: RunRecord) -> Crew:
    """Return the crew of a *worker* whose network was scored by an earlier attempt."""
    known = record.measurement
    return Crew(
        worker=worker,
        quality=record.quality,
        quality_images=record.quality_images,
        parity=record.parity,
        quality_intervals=record.quality_intervals,
        drift=record.drift,
        build_s=known.build_s if known else math.nan,
        artifact_cached=known.artifact_cached if known else None,
        scored_evidence=scored_facts(known.evidence) if known else {},
    )
