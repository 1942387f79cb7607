"""Carry out a sweep: references, sets of workers, groups of cases, a record for every case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.backends import known_backends
from bench.interleave import Limits, Member, measure_group
from bench.measure import BlockPlan, utc_now
from bench.parity import PARITY_IMAGES
from bench.plan import PlannedCase, split_sets
from bench.provision import Provision
from bench.records import Block, Case, Parity, RunRecord
from bench.run_folder import RunFolder
from bench.statistic import judge
from bench.worker import Job, Opened, Scored, Worker, WorkerError, measurement
from lensing_models.progress import ProgressLine
from lensing_models.registry import find_task

#: Live workers beside the anchor. On a CPU a network has seven (eager, TorchScript and OpenVINO in two
#: precisions, ONNX Runtime in one), and all that are compared should take turns.
MOST_WORKERS = 7
#: Patience with the scoring of a whole test split, which may be thousands of images one by one [s].
SCORE_PATIENCE_S = 3600.0
#: The anchor is the same in every run: a small network with random weights, one image a call.
ANCHOR_ARCHITECTURE = "mobilenetv3_small"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured: block, limits, and whether there is any timing at all."""

    block: BlockPlan
    limits: Limits
    timed: bool


@dataclass(kw_only=True, slots=True)
class Crew:
    """A worker that is alive, and what is known of its network through its backend."""

    worker: Worker
    opened: Opened
    batch_size: int
    quality: Mapping[str, float]
    quality_images: int


class Execution:
    """One pass over the cases that have no record yet.

    Args:
        folder: Where everything is written.
        provision: Data and checkpoints.
        sizes: How much is measured.
        workdir: Folder of exported files.
        fingerprint: Of the machine and thread count.
    """

    def __init__(
        self, folder: RunFolder, provision: Provision, sizes: Sizes, *, workdir: Path, fingerprint: str
    ) -> None:
        self._folder, self._provision, self._sizes, self._workdir = folder, provision, sizes, workdir
        self._fingerprint = fingerprint
        self._anchor: Member | None = None

    def run(self, cases: Sequence[PlannedCase]) -> None:
        """Leave a record for each of *cases* that has none; finished ones are not touched.

        Raises:
            ValueError: If finished ones were measured with other weights or other data.
        """
        finished = self._finished(cases)
        pending = [planned for planned in cases if planned.case.key not in finished]
        for planned in pending:
            if planned.skip_reason:
                self._folder.record(replace(self._blank(planned.case), status="skipped", reason=planned.skip_reason))
        todo = [planned.case for planned in pending if not planned.skip_reason]
        scored = {record.case.worker_key: record for record in finished.values() if record.quality}
        with ProgressLine("measure", len(todo)) as self._line:
            try:
                for pair in dict.fromkeys((case.task, case.architecture) for case in todo):
                    self._run_pair([case for case in todo if (case.task, case.architecture) == pair], scored)
            finally:
                if self._anchor:
                    self._folder.note({"anchor_failure": self._anchor.failure})
                    self._anchor.worker.close()

    def _finished(self, cases: Sequence[PlannedCase]) -> dict[str, RunRecord]:
        """Return the records that stand: measured, if this run measures, or skipped for today's reason."""
        reasons = {planned.case.key: planned.skip_reason for planned in cases}
        stands = {
            key: record
            for key, record in self._folder.finished().items()
            if (record.status == "ok" and (record.timing or not self._sizes.timed))
            or (record.status == "skipped" and record.reason == reasons.get(key))
        }
        for key, record in stands.items():
            now = self._blank(record.case) if key in reasons and record.status == "ok" else record
            if (now.checkpoint_sha256, now.dataset_digest) != (record.checkpoint_sha256, record.dataset_digest):
                raise ValueError(f"{key} was measured with other weights or data; choose another --out")
        return stands

    def _run_pair(self, cases: Sequence[Case], scored: Mapping[str, RunRecord]) -> None:
        """Measure one network on one task, its workers in as few sets as `MOST_WORKERS` allows."""
        if self._provision.checkpoints.get((cases[0].task, cases[0].architecture)) is None:
            self._fail_all(cases, "the fit of its network failed and left no checkpoint")
            return
        try:
            self._compute_reference(cases[0])
        except WorkerError as error:
            self._fail_all(cases, f"no reference outputs: {error}")
            return
        for names in split_sets(list(dict.fromkeys(case.worker_key for case in cases)), MOST_WORKERS):
            chosen = [case for case in cases if case.worker_key in names]
            with self._crews(chosen, scored) as crews:
                for size in dict.fromkeys(case.batch_size for case in chosen):
                    group = [case for case in chosen if case.batch_size == size]
                    self._run_group(f"{names[0]}+{len(names) - 1}/b{size}", group, crews)

    def _compute_reference(self, case: Case) -> None:
        """Have a process of its own compute the reference outputs of *case*'s network."""
        job = self._job(case)
        self._line.say(f"reference {case.task}/{case.architecture}")
        worker = Worker(job)
        try:
            worker.ask("reference", patience_s=SCORE_PATIENCE_S)
        finally:
            worker.close()

    @contextmanager
    def _crews(self, cases: Sequence[Case], scored: Mapping[str, RunRecord]) -> Iterator[dict[str, Crew]]:
        """Start the workers of *cases* one after the other; the cases of one that fails are recorded so."""
        crews: dict[str, Crew] = {}
        try:
            for name in dict.fromkeys(case.worker_key for case in cases):
                own = [case for case in cases if case.worker_key == name]
                self._line.say(f"score {name}")
                worker = Worker(self._job(own[0]))
                try:
                    crews[name] = self._start(worker, own[0], scored.get(name))
                except WorkerError as error:
                    worker.close()
                    self._fail_all(own, str(error), getattr(error, "parity", None))
            yield crews
        finally:
            for crew in crews.values():
                crew.worker.close()

    def _start(self, worker: Worker, case: Case, earlier: RunRecord | None) -> Crew:
        """Open the worker's first session, compare it and score it.

        Raises:
            WorkerError: If the session cannot be built or its outputs are wrong.
        """
        # What is scored is compared as well: one pass over the test split serves both.
        opened: Opened = worker.ask("open", case.batch_size, PARITY_IMAGES if earlier else 0)
        if opened.failure:
            raise WrongOutputsError(opened.failure, opened.parity)
        if earlier:
            quality, images = earlier.quality, earlier.quality_images
        else:
            scored: Scored = worker.ask("score", patience_s=SCORE_PATIENCE_S)
            if scored.failure:
                raise WrongOutputsError(scored.failure, scored.parity)
            opened, quality, images = replace(opened, parity=scored.parity), scored.quality, scored.images
        return Crew(worker=worker, opened=opened, batch_size=case.batch_size, quality=quality, quality_images=images)

    def _run_group(self, name: str, cases: Sequence[Case], crews: Mapping[str, Crew]) -> None:
        """Measure one batch size of a set of workers and record its cases."""
        members = []
        for case in cases:
            if (crew := crews.get(case.worker_key)) and self._reopen(crew, case):
                members.append(Member(case=case, worker=crew.worker))
        if not self._sizes.timed:
            for member in members:
                self._record(member, crews[member.case.worker_key])
            return
        if members:
            self._line.say(f"time {name}: {len(members)} cases in turns")
            measure_group(
                members,
                self._find_anchor(cases[0]),
                self._sizes.limits,
                on_block=self._keep_block(name),
                on_done=lambda member: self._record(member, crews[member.case.worker_key]),
            )

    def _reopen(self, crew: Crew, case: Case) -> bool:
        """Have the crew's session made for *case*'s batch size; say whether it stands.

        The first session of a worker was compared on all parity images; a further one is
        compared on its first batch, and on no fewer than 32 images.
        """
        if crew.batch_size == case.batch_size:
            return True
        try:
            crew.opened = crew.worker.ask("open", case.batch_size, min(max(case.batch_size, 32), PARITY_IMAGES))
        except WorkerError as error:
            self._fail(case, str(error))
            return False
        crew.batch_size = case.batch_size
        if crew.opened.failure:
            self._fail(case, crew.opened.failure, crew.opened.parity)
        return not crew.opened.failure

    def _find_anchor(self, case: Case) -> Member | None:
        """Return the anchor, started at its first use; None if it cannot run."""
        if self._anchor is None:
            anchor = replace(
                case,
                architecture=ANCHOR_ARCHITECTURE,
                backend="eager",
                precision="fp32",
                batch_size=1,
                variant="anchor",
            )
            job = replace(self._job(case), case=anchor, checkpoint=None, reference=None)
            self._anchor = Member(case=anchor, worker=Worker(job))
            try:
                self._anchor.worker.ask("open", 1, 0)
            except WorkerError as error:
                self._anchor.failure = str(error)
        return self._anchor

    def _keep_block(self, group: str) -> Callable[[Member, Block], None]:
        def keep(member: Member, block: Block) -> None:
            key = f"anchor/{member.case.key}" if member is self._anchor else member.case.key
            self._folder.record_block(key, group, block)

        return keep

    def _record(self, member: Member, crew: Crew) -> None:
        """Write the record of a member that was measured, or only checked."""
        case, failure = member.case, member.failure
        if not failure:
            try:
                evidence, digest = crew.worker.ask("evidence")
            except WorkerError as error:
                failure = str(error)
        if failure:
            self._fail(case, failure, crew.opened.parity)
            return
        timing = member.timing(self._sizes.limits) if self._sizes.timed else None
        record = replace(
            self._blank(case),
            status="ok",
            reason=str(evidence.get("fallback") or ""),
            validity=judge(timing, evidence, case.precision) if timing else "",
            measurement=measurement(crew.opened, evidence, digest),
            parity=crew.opened.parity,
            quality=crew.quality,
            quality_images=crew.quality_images,
            timing=timing,
        )
        self._folder.record(record)
        self._line.advance(case.key)

    def _fail_all(self, cases: Sequence[Case], reason: str, parity: Parity | None = None) -> None:
        for case in cases:
            self._fail(case, reason, parity)

    def _fail(self, case: Case, reason: str, parity: Parity | None = None) -> None:
        one_line = " ".join(reason.split())
        self._folder.record(replace(self._blank(case), status="failed", reason=one_line, parity=parity))
        self._line.advance(f"{case.key} failed: {one_line[:120]}")

    def _blank(self, case: Case) -> RunRecord:
        """Return the record of *case* with all that is known before it runs."""
        found = self._provision.checkpoints.get((case.task, case.architecture))
        store = self._provision.stores.get(case.task)
        return RunRecord(
            run=self._folder.path.name,
            recorded_at=utc_now(),
            case=case,
            status="skipped",
            checkpoint_sha256=found[1].sha256 if found else "",
            dataset_digest=store.recipe_digest if store else "",
            converged=found[1].converged if found else None,
            backend_version=known_backends()[case.backend].probe(case.device).version,
            primary_metric=find_task(case.task).primary_metric,
            environment=self._fingerprint,
        )

    def _job(self, case: Case) -> Job:
        reference = self._folder.outputs_file(f"{case.task}/{case.architecture}/reference")
        return Job(
            case=case,
            checkpoint=self._provision.checkpoints[case.task, case.architecture][0].resolve(),
            store=self._provision.stores[case.task].folder.resolve(),
            workdir=self._workdir.resolve(),
            reference=reference.resolve(),
            outputs=self._folder.outputs_file(case.worker_key).resolve(),
            plan=self._sizes.block,
        )


class WrongOutputsError(WorkerError):
    """A session's outputs are not those of the network."""

    def __init__(self, reason: str, parity: Parity | None) -> None:
        super().__init__(reason)
        self.parity = parity
