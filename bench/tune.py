"""Search the settings at which a runtime is fastest for a case, each timed in turns with the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from bench.backends import known_backends
from bench.interleave import Limits, Member, measure_group
from bench.job import Job
from bench.knob import Settings, Try, Tuning, apply_settings, knobs_of
from bench.process import Oversight, Worker, WorkerError
from bench.records import BUILD, Block, Case, Scalar
from bench.run_folder import RunFolder, read_tunings
from bench.statistic import accepted_blocks, latency_ratio
from bench.timetable import Timetable

#: Blocks of a try, and of the best so far beside it, and how many pairs of them must be clean.
LIMITS = Limits(blocks=6, most_blocks=6, case_s=math.inf, target_ci=1e-9)
FEWEST_PAIRS = 4
#: A try is taken if it is faster by this share at least, and its interval says that it is faster at all:
#: two processes of one case differ by a percent or two for good.
LEAST_GAIN = 0.03
#: Images by which a try is held against the reference.
COMPARED_IMAGES = 32
#: Number of the builds that a search times, where builds differ: no row runs it, so that its luck is nobody's.
SEARCH_BUILD = 1000
#: Why a tuned case has no row of its own: that is known, or it is not.
NOTHING_FASTER = "no setting was faster than the defaults"
NOT_SEARCHED = "its settings could not be searched"


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

    def keeps_defaults(self, case: Case) -> bool:
        """Return whether a search has found nothing faster for *case*, which then has no row of its own."""
        return case.key in self._known and self._known[case.key].keeps_defaults

    def find(self, case: Case, say: Callable[[str], None]) -> Settings:
        """Return the fastest settings of *case*, searched unless they are known; *say* is told what begins.

        Raises:
            WorkerError: If the case fails with its defaults.
        """
        if case.key not in self._known:
            # The run books the whole as one part.
            apart = replace(self._oversight, timetable=Timetable())
            with self._oversight.timetable.spend("tuning"):
                found = tune(replace(self._make_job(case), settings={}), apart, say)
            self._known[case.key] = replace(found, environment=self._fingerprint)
            self._folder.record_tuning(self._known[case.key])
        return self.known(case)

    def why_skipped(self, case: Case) -> str:
        """Return why *case*, for which nothing was found, has no row."""
        found = self._known[case.key]
        failures = list(dict.fromkeys(each.failure for each in found.tries if each.failure))
        if not found.keeps_defaults:
            return f"{NOT_SEARCHED}: {'; '.join(failures) or 'there is nothing to choose'}"
        lost = sum(bool(each.failure) for each in found.tries)
        return f"{NOTHING_FASTER} ({len(found.tries)} tried" + (f", {lost} without a time)" if lost else ")")


def tune(job: Job, oversight: Oversight, say: Callable[[str], None]) -> Tuning:
    """Return the settings that were fastest for the case of *job*, and all tries.

    The times of the search decide; none is reported as the latency of a row, which is measured afterwards, in
    new processes, so that the best of several noisy tries flatters nobody.

    Args:
        job: Of the case, with the batch size to tune for and no settings.
        oversight: What each process may take.
        say: Told what begins.

    Raises:
        WorkerError: If the case fails with its defaults.
    """
    best: Settings = {}
    holder = start(job, best, oversight)
    tries: list[Try] = []
    try:
        for name in knobs_of(job.case, known_backends()[job.case.backend]):
            for value in choices(job.case, name, best):
                settings = {**best, name: value}
                say(f"tune {job.case.key}: {name} {value}")
                if holder.ended:
                    holder = start(job, best, oversight)
                challenger, tried = challenge(job, holder, settings, oversight)
                tries.append(tried)
                if challenger and tried.is_taken:
                    holder.close()
                    best, holder = settings, challenger
                elif challenger:
                    challenger.close()
    finally:
        holder.close()
    return Tuning(case=job.case.key, settings=best, tries=tuple(tries))


def choices(case: Case, name: str, best: Settings) -> tuple[Scalar, ...]:
    """Return the values of setting *name* that are left to try for *case* with the settings *best*.

    What can be chosen may depend on what was: with one thread a batch is not divided.
    """
    backend, changed = apply_settings(known_backends()[case.backend], case, best)
    return knobs_of(changed, backend).get(name, ())[1:]


def challenge(job: Job, holder: Worker, settings: Settings, oversight: Oversight) -> tuple[Worker | None, Try]:
    """Return the process that runs *settings*, None if it does not stand, and how it did beside *holder*."""
    challenger: Worker | None = None
    try:
        challenger = start(job, settings, oversight)
        if fallback := challenger.ask("evidence")[0].get("fallback"):
            raise WorkerError(f"fallback: {fallback}")
        return challenger, race(holder, challenger, settings)
    except WorkerError as error:
        return challenger, fail(settings, str(error))


def start(job: Job, settings: Settings, oversight: Oversight) -> Worker:
    """Return a process in which the session of *job* stands with *settings*, its answers those of the reference.

    Raises:
        WorkerError: If it does not.
    """
    differ = getattr(known_backends()[job.case.backend], "builds_differ", False)
    worker = Worker(replace(job, settings={**settings, **({BUILD: SEARCH_BUILD} if differ else {})}), oversight)
    try:
        images = COMPARED_IMAGES if job.reference else 0
        opened = worker.ask("open", job.case.batch_size, job.case.threads, images)
        if opened.failure:
            raise WorkerError(opened.failure)
    except WorkerError:
        worker.close()
        raise
    return worker


def race(holder: Worker, challenger: Worker, settings: Settings) -> Try:
    """Return how *challenger*, which has *settings*, did beside *holder*.

    Raises:
        WorkerError: If either failed, or too few pairs of blocks were clean.
    """
    names: Mapping[str, Worker] = {"best so far": holder, "try": challenger}
    pair = [Member(case=replace(worker.job.case, variant=name), worker=worker) for name, worker in names.items()]

    def ignore(member: Member, block: Block | None = None) -> None:
        """Keep nothing: what is reported is measured later."""

    measure_group(pair, [], LIMITS, on_block=ignore, on_done=ignore)
    for member in pair:
        if member.failure:
            whose = "the settings it was compared with: " if member.worker is holder else ""
            raise WorkerError(f"{whose}{member.failure}")
    rounds = [{block.round for block in accepted_blocks(member.blocks)} for member in pair]
    if len(rounds[0] & rounds[1]) < FEWEST_PAIRS:
        raise WorkerError("other people's work spoilt too many of its blocks")
    ratio = latency_ratio(pair[1].timing(LIMITS), pair[0].timing(LIMITS))
    is_taken = ratio.point <= 1 - LEAST_GAIN and ratio.high < 1
    return Try(settings=settings, ratio=ratio.point, ratio_low=ratio.low, ratio_high=ratio.high, is_taken=is_taken)


def fail(settings: Settings, reason: str) -> Try:
    """Return the try of *settings* that came to nothing for *reason*."""
    one_line = " ".join(reason.split())
    return Try(settings=settings, ratio=math.nan, ratio_low=math.nan, ratio_high=math.nan, failure=one_line)
