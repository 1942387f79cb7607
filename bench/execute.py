"""Carry out a sweep: references, sets of workers, groups of cases, a record for every case."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.anchor import Anchors
from bench.backends import known_backends
from bench.crew import Crew, score_together
from bench.energy import ask_energy
from bench.experiment import Findings, gather, saturate_together, time_end_to_end, time_gpu
from bench.interleave import Member
from bench.job import Job
from bench.knob import TUNED, Settings, untuned
from bench.largest import find_largest_batch, open_alone
from bench.level import contended_keys
from bench.measure import utc_now
from bench.passes import measure_passes
from bench.plan import PlannedCase, split_sets
from bench.preliminary import Preliminaries
from bench.process import Oversight, WorkerError
from bench.provision import Provision
from bench.recorder import Recorder
from bench.records import BUILD, Case, Parity, RunRecord
from bench.run_folder import RunFolder
from bench.scenario import PlannedScenario
from bench.scenario_pass import ScenarioPass
from bench.sizes import Sizes
from bench.standing import scored_workers, standing_records
from bench.table import read_levels
from bench.tune import Tuner
from bench.vouch import Vouchers
from lensing_models.progress import ProgressLine

#: Live workers beside the anchors. On a CPU a network has eleven (eager, TorchScript, inductor, AOTInductor and
#: OpenVINO in two precisions, ONNX Runtime in one), in two sets: each holds a network and a runtime in memory
#: (EfficientNet-B5 while inductor compiles it for one image: 1.2 GB resident, what is shared included).
MOST_WORKERS = 7


class Execution:
    """One pass over the cases that have no record yet.

    Args:
        folder: Where everything is written.
        provision: Data and checkpoints.
        sizes: How much is measured.
        workdir: Folder of exported files.
        fingerprint: Of the machine and thread count.
        oversight: What each worker may take.
        retry_contended: Whether the rows of an earlier attempt that are contended are measured once more.
    """

    def __init__(
        self,
        folder: RunFolder,
        provision: Provision,
        sizes: Sizes,
        *,
        workdir: Path,
        fingerprint: str,
        oversight: Oversight,
        retry_contended: bool = False,
    ) -> None:
        self._folder, self._provision, self._sizes, self._workdir = folder, provision, sizes, workdir
        self._fingerprint, self._oversight, self._retry_contended = fingerprint, oversight, retry_contended
        self._anchors = Anchors(folder, self._job, oversight)
        self._recorder = Recorder(folder, provision, fingerprint)
        self._flop: dict[tuple[str, str], float | None] = {}
        self._preliminaries = Preliminaries(folder, self._job, oversight)
        self._group, self._largest = "", 1
        self._earlier: dict[str, RunRecord] = {}
        self._tuner = Tuner(folder, self._job, fingerprint, oversight)
        self._vouchers = Vouchers()

    def run(self, cases: Sequence[PlannedCase]) -> None:
        """Leave a record for each of *cases* that has none; finished ones are not touched.

        Raises:
            ValueError: If finished ones were measured with other weights or other data.
        """
        finished = standing_records(self._folder, cases, self._recorder, self._tuner, is_timed=self._sizes.timed)
        levels = read_levels(self._folder.facts())
        again = contended_keys(finished.values(), levels) if self._retry_contended else frozenset()
        pending = [planned for planned in cases if planned.case.key not in finished or planned.case.key in again]
        for planned in pending:
            if planned.skip_reason:
                self._recorder.skip(planned.case, planned.skip_reason)
        todo = [planned.case for planned in pending if not planned.skip_reason]
        self._earlier = {key: finished[key] for key in again}
        self._largest = max((planned.case.batch_size for planned in cases), default=1)
        scored = scored_workers(self._folder, finished.values())
        with ProgressLine("measure", len(todo)) as self._line:
            if self._sizes.timed:
                ready = [case for case in todo if (case.task, case.network) in self._provision.checkpoints]
                self._preliminaries.test_harness(ready, self._line.say)
                self._preliminaries.find_ceilings(ready, self._line.say)
            try:
                for pair in dict.fromkeys((case.task, case.network) for case in todo):
                    self._run_pair([case for case in todo if (case.task, case.network) == pair], scored)
            finally:
                self._anchors.close()

    def run_scenarios(
        self, cases: Sequence[PlannedCase], plan: Callable[[list[RunRecord]], list[PlannedScenario]]
    ) -> None:
        """Drive those of *cases* that were measured through what *plan* makes of their records."""
        finished = self._folder.finished()
        records = [finished[planned.case.key] for planned in cases if planned.case.key in finished]
        ScenarioPass(self._folder, self._job, self._fingerprint, self._oversight).run(plan(records))

    def _run_pair(self, cases: Sequence[Case], scored: Mapping[str, RunRecord]) -> None:
        """Measure one network on one task, its workers in as few sets as `MOST_WORKERS` allows."""
        if self._provision.checkpoints.get((cases[0].task, cases[0].network)) is None:
            for case in cases:
                self._fail(case, "the fit of its network failed and left no checkpoint")
            return
        if self._sizes.timed:
            self._flop[cases[0].task, cases[0].network] = self._preliminaries.count_flop(cases[0], self._line.say)
        # A tuned one is measured in turns with the default one.
        together: dict[str, dict[str, None]] = {}
        for case in cases:
            together.setdefault(untuned(case).worker_key, {})[case.worker_key] = None
        sets = split_sets(list(together), MOST_WORKERS // max(map(len, together.values())))
        for turn, plain in enumerate(sets):
            keys = [key for name in plain for key in together[name]]
            chosen = [case for case in cases if case.worker_key in keys]
            # Of a set whose reference failed the next one says the same reason.
            reference = self._folder.outputs_file(f"{cases[0].task}/{cases[0].network}/reference")
            with self._crews(chosen, scored, with_reference=turn == 0 or not reference.exists()) as crews:
                sizes = list(dict.fromkeys(case.batch_size for case in chosen))
                # The largest last: by then its memory is nobody else's.
                for size in sorted(sizes, key=lambda size: size == max(sizes)):
                    group = [case for case in chosen if case.batch_size == size]
                    self._run_group(f"{keys[0]}+{len(keys) - 1}/b{size}", group, crews)

    @contextmanager
    def _crews(
        self, cases: Sequence[Case], scored: Mapping[str, RunRecord], *, with_reference: bool
    ) -> Iterator[dict[str, Crew]]:
        """Start and score the workers of *cases*; the cases of one that fails are recorded so."""
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(case.worker_key, case)
        jobs = [self._job(case) for case in first.values()]
        answers = score_together(
            jobs, scored=scored, with_reference=with_reference, say=self._line.say, oversight=self._oversight
        )
        crews = {key: answer for key, answer in answers.items() if isinstance(answer, Crew)}
        try:
            for case in cases:
                if isinstance(error := answers[case.worker_key], WorkerError):
                    self._fail(case, str(error), getattr(error, "parity", None))
            yield crews
        finally:
            for crew in crews.values():
                crew.worker.close()

    def _run_group(self, name: str, cases: Sequence[Case], crews: Mapping[str, Crew]) -> None:
        """Measure one batch size of a set of workers, the largest last, and record its cases."""
        members = []
        for case in cases:
            if (crew := crews.get(case.worker_key)) is None:
                continue
            if (settings := self._settle(case)) is None:
                continue
            if failure := crew.open(case, settings):
                self._fail(case, failure, crew.worst_parity)
            else:
                members.append(Member(case=case, worker=crew.worker))
        found: dict[str, Findings] = {}

        def finish(member: Member) -> None:
            self._gather(member, crews[member.case.worker_key], found)

        if not self._sizes.timed:
            for member in members:
                finish(member)
        elif members:
            self._line.say(f"time {name}: {len(members)} cases in turns")
            self._group = f"{name} {utc_now()}"
            keep = self._anchors.keep_block

            def reopen(member: Member, process: int) -> Member:
                crew = crews[member.case.worker_key]
                settings = self._numbered(member.case, crew.settings, process)
                failure = self._vouchers.ask(member) or crew.open(member.case, settings)
                return Member(case=member.case, worker=crew.worker, failure=failure)

            members = measure_passes(
                members,
                self._anchors.begin(cases[0]),
                self._sizes.limits,
                self._sizes.processes,
                reopen=reopen,
                on_block=keep(name),
                on_done=finish,
                seed=zlib.crc32(self._group.encode()),
            )
            able = [member for member in members if member.case.key in found]
            self._line.say(f"saturate {name}: {len(able)} cases in turns")
            lost_s = sum(member.rejected_s for member in members)
            saturated, seed = self._sizes.extras.saturated, zlib.crc32(self._group.encode())
            lost_s += saturate_together(able, found, saturated, keep(f"{name}/throughput"), seed)
            self._oversight.timetable.move("measuring", "rejected", lost_s)
        # Of the plan: what is left of it may be a smaller one, whose row tells nothing of the largest.
        if cases[0].batch_size == self._largest and self._sizes.extras.has_largest_batch:
            self._find_largest(crews, members, found)
        for member in members:
            if findings := found.get(member.case.key):
                self._record(member, crews[member.case.worker_key], findings)

    def _numbered(self, case: Case, settings: Settings, process: int) -> Settings:
        """Return *settings* with the number of the build that *process* runs, where builds differ."""
        builds = self._builds(case)
        return {**settings, BUILD: process % builds} if builds > 1 else settings

    def _builds(self, case: Case) -> int:
        return self._sizes.builds if getattr(known_backends()[case.backend], "builds_differ", False) else 1

    def _settle(self, case: Case) -> Settings | None:
        """Return the settings of *case*; None, with its record written, where it needs no row or has failed."""
        if not case.has_variant(TUNED):
            return {}
        reason = "settings are searched by time, and --verify times nothing"
        if self._sizes.timed:
            try:
                settings = self._tuner.find(case, self._line.say)
            except WorkerError as error:
                self._fail(case, str(error))
                return None
            if settings:
                return settings
            reason = self._tuner.why_skipped(case)
        self._recorder.skip(case, reason)
        self._line.advance(f"{case.key}: {reason}")
        return None

    def _gather(self, member: Member, crew: Crew, found: dict[str, Findings]) -> None:
        """Put into *found* what is known of a member whose latency was measured; one that failed is recorded so."""
        try:
            if member.failure:
                raise WorkerError(member.failure)
            findings = gather(member)
        except WorkerError as error:
            self._fail(member.case, str(error), crew.worst_parity)
            return
        self._vouchers.complete(member.case.key, findings.evidence, crew.scored_evidence)
        if self._sizes.timed:
            time_end_to_end(member, findings, self._sizes.extras)
            time_gpu(member, findings, self._sizes.extras)
            findings.energy = ask_energy(member.worker, member.case, self._sizes.energy_s)
        found[member.case.key] = findings

    def _find_largest(
        self, crews: Mapping[str, Crew], members: Sequence[Member], found: Mapping[str, Findings]
    ) -> None:
        """Find the largest batch of each member, once their processes have ended."""
        for crew in crews.values():
            crew.worker.close()
        for member in members:
            findings, opened = found.get(member.case.key), crews[member.case.worker_key].opened
            if findings and opened:
                self._line.say(f"largest batch of {member.case.worker_key}")
                open_batch = functools.partial(open_alone, oversight=self._oversight)
                findings.largest = find_largest_batch(self._job(member.case), member.case, opened, open_batch)

    def _record(self, member: Member, crew: Crew, findings: Findings) -> None:
        """Write the record of a member that was measured, or only checked."""
        case, timing = member.case, None
        if self._sizes.timed:
            anchors = self._anchors.times(member.blocks)
            timing = replace(
                member.timing(self._sizes.limits),
                anchor_s={name: time.point_s for name, time in anchors.items()},
                anchor_low_s={name: time.low_s for name, time in anchors.items()},
                group=self._group,
                builds=self._builds(case),
            )
        flop = self._flop.get((case.task, case.network))
        earlier = self._earlier.get(case.key)
        self._recorder.complete(case, crew, findings, timing=timing, flop_per_image=flop, earlier=earlier)
        self._line.advance(case.key)

    def _fail(self, case: Case, reason: str, parity: Parity | None = None) -> None:
        self._recorder.fail(case, reason, parity)
        self._line.advance(f"{case.key} failed: {' '.join(reason.split())[:120]}")

    def _job(self, case: Case) -> Job:
        reference = self._folder.outputs_file(f"{case.task}/{case.network}/reference")
        return Job(
            case=case,
            checkpoint=self._provision.checkpoints[case.task, case.network][0].resolve(),
            store=self._provision.stores[case.task].folder.resolve(),
            workdir=self._workdir.resolve(),
            reference=reference.resolve(),
            outputs=self._folder.outputs_file(untuned(case).worker_key).resolve(),
            plan=self._sizes.block,
            settings=self._tuner.known(case),
        )
