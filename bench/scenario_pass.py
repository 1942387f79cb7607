"""Drive what was timed through the scenarios: a process for each session, a record for each scenario."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.answer import Opened
from bench.arrival import Outcome
from bench.crew import compared_images
from bench.job import Job
from bench.measure import LoadMeter, utc_now
from bench.process import Oversight, Worker, WorkerError
from bench.records import Case, Status
from bench.run_folder import RunFolder, read_scenarios
from bench.scenario import PlannedScenario
from bench.scenario_record import ScenarioRecord
from lensing_models.progress import ProgressLine


class ScenarioPass:
    """One pass over the scenarios that have no record yet.

    Args:
        folder: Where the records are written.
        make_job: Returns the job of a case's worker.
        fingerprint: Of the machine and thread count.
        oversight: What a worker may take; a scenario has a time of its own.
    """

    def __init__(
        self, folder: RunFolder, make_job: Callable[[Case], Job], fingerprint: str, oversight: Oversight
    ) -> None:
        self._folder, self._make_job, self._fingerprint, self._oversight = folder, make_job, fingerprint, oversight

    def run(self, planned: Sequence[PlannedScenario]) -> None:
        """Leave a record for each of *planned* that has none with the same settings.

        The sessions are made anew, one at a time, when every latency has been recorded: no other
        one's pool spins meanwhile, and what a scenario breaks is nobody else's.
        """
        earlier = read_scenarios(self._folder.path)
        todo = [plan for plan in planned if not is_done(plan, earlier.get((plan.case.key, plan.scenario)))]
        with ProgressLine("scenarios", len(todo)) as self._line:
            for plan in todo:
                if plan.skip_reason:
                    self._record(plan, "skipped", plan.skip_reason)
            for case in dict.fromkeys(plan.case for plan in todo if not plan.skip_reason):
                self._drive(case, [plan for plan in todo if plan.case == case and not plan.skip_reason])

    def _drive(self, case: Case, plans: Sequence[PlannedScenario]) -> None:
        """Record *plans*, all of *case*; what follows one that failed gets a process of its own."""
        worker: Worker | None = None
        for number, plan in enumerate(plans):
            self._line.say(f"{plan.scenario} {case.key}")
            if worker is None:
                try:
                    worker = self._open(case)
                except WorkerError as error:
                    for lost in plans[number:]:
                        self._record(lost, "failed", str(error))
                    return
            try:
                self._measure(plan, worker)
            except WorkerError as error:
                self._record(plan, "failed", str(error))
                # LoadGen aborts a process in which a test of it did not come to its end.
                worker.kill()
                worker = None
        if worker:
            worker.close()

    def _open(self, case: Case) -> Worker:
        """Return a worker whose session of *case* stands and agrees with the reference.

        Raises:
            WorkerError: If it does not.
        """
        # Several LoadGen tests in one call may take longer than any stage of a case.
        worker = Worker(self._make_job(case), replace(self._oversight, stage_s=math.inf))
        try:
            opened: Opened = worker.ask(
                "open", case.batch_size, case.threads, compared_images(case), patience_s=self._oversight.stage_s
            )
            if opened.failure:
                raise WorkerError(opened.failure)
        except WorkerError:
            worker.kill()
            raise
        return worker

    def _measure(self, plan: PlannedScenario, worker: Worker) -> None:
        """Record what *plan* gives.

        Raises:
            WorkerError: If the session failed, died or hung.
        """
        with TemporaryDirectory(prefix="loadgen-") as logs:
            meter = LoadMeter([worker.pid], plan.case.threads)
            outcome: Outcome = worker.ask(
                "scenario", plan.scenario, dict(plan.settings), Path(logs), patience_s=plan.patience_s
            )
            load = meter.read()
        known = {} if math.isnan(load) else {"foreign_load": load}
        self._record(plan, "ok", outcome.reason, replace(outcome, metrics={**outcome.metrics, **known}))

    def _record(self, plan: PlannedScenario, status: Status, reason: str, outcome: Outcome | None = None) -> None:
        found = outcome or Outcome(metrics={})
        one_line = " ".join(reason.split())
        record = ScenarioRecord(
            run=self._folder.path.name,
            recorded_at=utc_now(),
            case=plan.case,
            scenario=plan.scenario,
            status=status,
            reason=one_line,
            verdict=found.verdict,
            metrics=found.metrics,
            settings={**plan.settings, **found.settings},
            environment=self._fingerprint,
        )
        self._folder.record_scenario(record)
        self._line.advance(
            f"{plan.scenario} {plan.case.key}" + (f" {status}: {one_line[:120]}" if status != "ok" else "")
        )


def is_done(plan: PlannedScenario, record: ScenarioRecord | None) -> bool:
    """Return whether *record* answers *plan*: measured with the same settings, or skipped for the same reason."""
    if record is None or record.status == "failed":
        return False
    if record.status == "skipped":
        return record.reason == plan.skip_reason
    return all(record.settings.get(name) == value for name, value in plan.settings.items())
