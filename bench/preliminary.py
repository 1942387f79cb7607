"""What is found out before the cases: the harness itself, the most that the device does, a network's arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.ceiling import measure_ceilings
from bench.job import Job
from bench.json_lines import to_json
from bench.process import Oversight, Worker, WorkerError
from bench.records import Case
from bench.run_folder import RunFolder
from bench.selftest import run_selftest, to_facts
from bench.timetable import Timetable


class Preliminaries:
    """What is noted once a run, or once a network.

    Args:
        folder: Where it is noted.
        make_job: Returns the job of a case's worker.
        oversight: What each worker may take.
    """

    def __init__(self, folder: RunFolder, make_job: Callable[[Case], Job], oversight: Oversight) -> None:
        self._folder, self._make_job, self._oversight = folder, make_job, oversight

    def test_harness(self, cases: Sequence[Case], say: Callable[[str], None]) -> None:
        """Note what the harness makes of what is known, on the data and the machine of any of *cases*."""
        known = self._folder.facts().get("selftest")
        if not cases or (isinstance(known, dict) and "overhead_s" in known):  # one that failed is repeated
            return
        say("self-test")
        try:
            with self._oversight.timetable.spend("self-test"):
                facts = to_facts(run_selftest(self._make_job(cases[0]), self._apart()))
        except WorkerError as error:
            facts = {"complaints": [f"it failed: {error}"]}
        self._folder.note({"selftest": facts})

    def find_ceilings(self, cases: Sequence[Case], say: Callable[[str], None]) -> None:
        """Note the most that the device of *cases* does."""
        if not cases or "ceilings" in self._folder.facts():
            return
        say("ceilings")
        with self._oversight.timetable.spend("ceilings"):
            ceilings = measure_ceilings(self._make_job(cases[0]), oversight=self._apart())
        self._folder.note({"ceilings": json.loads(to_json(ceilings))})

    def _apart(self) -> Oversight:
        """Return the run's limits with a timetable of their own: the run books the whole as one part."""
        return replace(self._oversight, timetable=Timetable())

    def count_flop(self, case: Case, say: Callable[[str], None]) -> float | None:
        """Return the operations of the network of *case* for one image; None where they cannot be counted.

        They are counted in a process of their own, whose memory is not measured.
        """
        worker = Worker(self._make_job(case), self._oversight)
        try:
            return float(worker.ask("flop_per_image"))
        except WorkerError as error:
            say(f"operations of {case.network} not counted: {error}")
            return None
        finally:
            worker.close()
