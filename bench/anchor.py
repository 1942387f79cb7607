"""The anchor of a run: one small case that every group shares, so that what moves it moves the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.interleave import Member
from bench.job import Job
from bench.process import Oversight, Worker, WorkerError
from bench.records import Block, Case
from bench.run_folder import RunFolder

#: The same in every run: a small network with random weights, eager fp32, one image a call.
ARCHITECTURE = "mobilenetv3_small"


class Anchor:
    """The anchor's worker, started when it is first asked for.

    Args:
        folder: Where its blocks are written.
        make_job: Returns the job of a case's worker.
        oversight: What the worker may take.
    """

    def __init__(self, folder: RunFolder, make_job: Callable[[Case], Job], oversight: Oversight) -> None:
        self._folder, self._make_job, self._oversight = folder, make_job, oversight
        self._member: Member | None = None

    def find(self, case: Case) -> Member:
        """Return the anchor, on the data and the device of *case*; with its `failure` where it cannot run."""
        if self._member is None:
            anchor = replace(
                case,
                architecture=ARCHITECTURE,
                backend="eager",
                precision="fp32",
                batch_size=1,
                variant="anchor",
            )
            job = replace(self._make_job(case), case=anchor, checkpoint=None, reference=None)
            # What it took in an earlier attempt tells its quiet level in this one.
            earlier = self._folder.blocks_of(f"anchor/{anchor.key}")
            self._member = Member(case=anchor, worker=Worker(job, self._oversight), blocks=earlier)
            try:
                self._member.worker.ask("open", 1, anchor.threads, 0)
            except WorkerError as error:
                self._member.failure = str(error)
        return self._member

    def keep_block(self, group: str) -> Callable[[Member, Block], None]:
        """Return what writes each block of *group* as it is measured, the anchor's under a name of its own."""

        def keep(member: Member, block: Block) -> None:
            key = f"anchor/{member.case.key}" if member is self._member else member.case.key
            self._folder.record_block(key, group, block)

        return keep

    def close(self) -> None:
        """End its worker, and note why it failed if it did."""
        if self._member:
            self._member.worker.close()
            if self._member.failure:
                self._folder.note({"anchor_failure": self._member.failure})
