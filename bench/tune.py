"""Search the settings at which a runtime is fastest for a case, each timed in turns with the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from bench.backends import known_backends
from bench.interleave import Limits, Member, measure_group
from bench.job import Job
from bench.knob import Settings, Try, Tuning, knobs_of
from bench.process import Oversight, Worker, WorkerError
from bench.records import Block, Case, Scalar
from bench.run_folder import RunFolder, read_tunings
from bench.statistic import latency_ratio

#: Blocks of a try, and of the best so far beside it.
LIMITS = Limits(blocks=6, most_blocks=6, case_s=math.inf, target_ci=1e-9)
#: A try is taken if it is faster by this share at least, and its interval says that it is faster at all:
#: two processes of one case differ by a percent or two for good.
LEAST_GAIN = 0.03
#: Images by which a try is held against the reference.
COMPARED_IMAGES = 32
#: Why a tuned case has no row of its own.
NOTHING_FASTER = "no setting was faster than the defaults"


class Tuner:
    """What is known of the fastest settings in one run, and the search for what is not.

    Args:
        folder: Where each search is written, and where those of an earlier attempt are.
        make_job: Returns the job of a case.
        fingerprint: Of the machine and thread count.
        oversight: What each process may take.
    """

    def __init__(
        self, folder: RunFolder, make_job: Callable[[Case], Job], fingerprint: str, oversight: Oversight
    ) -> None:
        self._folder, self._make_job, self._fingerprint, self._oversight = folder, make_job, fingerprint, oversight
        # What an earlier attempt could not time is searched again.
        self._known = {key: found for key, found in read_tunings(folder.path).items() if found.is_timed}

    def known(self, case: Case) -> Settings:
        """Return the settings that a search for *case* has found; empty if there was none, or nothing was faster."""
        return self._known[case.key].settings if case.key in self._known else {}

    def find(self, case: Case, say: Callable[[str], None]) -> Settings:
        """Return the fastest settings of *case*, searched unless they are known; *say* is told what begins.

        Raises:
            WorkerError: If the case fails with its defaults.
        """
        if case.key not in self._known:
            knobs = knobs_of(case, known_backends()[case.backend])
            found = tune(self._make_job(case), knobs, self._oversight, say)
            self._known[case.key] = replace(found, environment=self._fingerprint)
            self._folder.record_tuning(self._known[case.key])
        return self.known(case)

    def why_skipped(self, case: Case) -> str:
        """Return why *case*, for which nothing was faster, has no row."""
        tries = self._known[case.key].tries
        failed = sum(bool(each.failure) for each in tries)
        return f"{NOTHING_FASTER} ({len(tries)} tried" + (f", {failed} without a time)" if failed else ")")


def tune(job: Job, knobs: Mapping[str, tuple[Scalar, ...]], oversight: Oversight, say: Callable[[str], None]) -> Tuning:
    """Return the settings that were fastest for the case of *job*, and all tries.

    The times of the search decide; none is reported as the latency of a row, which is measured afterwards, in
    new processes, so that the best of several noisy tries flatters nobody.

    Args:
        job: Of the case, with the batch size to tune for and no settings.
        knobs: Values of each setting, the default first.
        oversight: What each process may take.
        say: Told what begins.

    Raises:
        WorkerError: If the case fails with its defaults.
    """
    best: Settings = {}
    holder = start(job, best, oversight)
    tries: list[Try] = []
    try:
        for name, values in knobs.items():
            for value in values[1:]:
                settings = {**best, name: value}
                say(f"tune {job.case.key}: {name} {value}")
                challenger: Worker | None = None
                try:
                    challenger = start(job, settings, oversight)
                    tried = race(holder, challenger, settings)
                except WorkerError as error:
                    tried = fail(settings, str(error))
                tries.append(tried)
                loser = holder if tried.is_taken else challenger
                if tried.is_taken and challenger:
                    best, holder = settings, challenger
                if loser:
                    loser.close()
    finally:
        holder.close()
    return Tuning(case=job.case.key, settings=best, tries=tuple(tries))


def start(job: Job, settings: Settings, oversight: Oversight) -> Worker:
    """Return a process in which the session of *job* stands with *settings*, its answers those of the reference.

    Raises:
        WorkerError: If it does not.
    """
    worker = Worker(replace(job, settings=settings), oversight)
    try:
        images = COMPARED_IMAGES if job.reference else 0
        opened = worker.ask("open", job.case.batch_size, job.case.threads, images)
        if opened.failure:
            raise WorkerError(opened.failure)
        evidence, _ = worker.ask("evidence")
        if evidence.get("fallback"):
            raise WorkerError(f"fallback: {evidence['fallback']}")
    except WorkerError:
        worker.close()
        raise
    return worker


def race(holder: Worker, challenger: Worker, settings: Settings) -> Try:
    """Return how *challenger*, which has *settings*, did beside *holder*.

    Raises:
        WorkerError: If either failed, or no time can be had.
    """
    names = ("holder", "challenger")
    pair = [
        Member(case=replace(worker.job.case, variant=name), worker=worker)
        for name, worker in zip(names, (holder, challenger), strict=True)
    ]

    def ignore(member: Member, block: Block | None = None) -> None:
        """Keep nothing: what is reported is measured later."""

    measure_group(pair, [], LIMITS, on_block=ignore, on_done=ignore)
    for member in pair:
        if member.failure:
            raise WorkerError(member.failure)
    ratio = latency_ratio(pair[1].timing(LIMITS), pair[0].timing(LIMITS))
    if math.isnan(ratio.low):
        raise WorkerError("other people's work spoilt too many of its blocks")
    is_taken = ratio.point <= 1 - LEAST_GAIN and ratio.high < 1
    return Try(settings=settings, ratio=ratio.point, ratio_low=ratio.low, ratio_high=ratio.high, is_taken=is_taken)


def fail(settings: Settings, reason: str) -> Try:
    """Return the try of *settings* that came to nothing for *reason*."""
    one_line = " ".join(reason.split())
    return Try(settings=settings, ratio=math.nan, ratio_low=math.nan, ratio_high=math.nan, failure=one_line)
