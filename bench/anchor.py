"""The anchors of a run: two small cases that every group shares, so that what moves them moves the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.interleave import Member
from bench.job import Job
from bench.level import AnchorTime, estimate
from bench.process import Oversight, Worker, WorkerError
from bench.records import Block, Case
from bench.run_folder import RunFolder
from bench.statistic import accepted_blocks

#: The same in every run: noise for images, random weights, eager fp32, one image a call. The first is bound by the
#: work of its many small layers; the weights of the second, 45 MB, do not stay in a cache that others use too.
ARCHITECTURES = ("mobilenetv3_small", "resnet18")
TASK = "substructure"


class Anchors:
    """The anchors' workers, started when they are first asked for.

    Args:
        folder: Where their blocks are written.
        make_job: Returns the job of a case's worker.
        oversight: What a worker may take.
    """

    def __init__(self, folder: RunFolder, make_job: Callable[[Case], Job], oversight: Oversight) -> None:
        self._folder, self._make_job, self._oversight = folder, make_job, oversight
        self._members: list[Member] = []
        self._since: list[int] = []

    def begin(self, case: Case) -> Sequence[Member]:
        """Return the anchors on the device of *case*, with its threads; one that cannot run has its `failure`."""
        self._members = self._members or [self._start(case, name) for name in ARCHITECTURES]
        self._since = [len(member.blocks) for member in self._members]
        return self._members

    def _start(self, case: Case, architecture: str) -> Member:
        # The same images too, whatever the run is about: a galaxy costs more than a lens.
        anchor = Case(
            task=TASK,
            architecture=architecture,
            backend="eager",
            precision="fp32",
            batch_size=1,
            device=case.device,
            threads=case.threads,
            variant="anchor",
        )
        job = replace(self._make_job(case), case=anchor, checkpoint=None, store=None, reference=None, settings={})
        # What it took in an earlier attempt tells its quiet level in this one.
        earlier = self._folder.blocks_of(f"anchor/{anchor.key}")
        member = Member(case=anchor, worker=Worker(job, self._oversight), blocks=earlier)
        try:
            member.worker.ask("open", 1, anchor.threads, 0)
        except WorkerError as error:
            member.failure = str(error)
        return member

    def times(self, blocks: Sequence[Block]) -> dict[str, AnchorTime]:
        """Return by anchor its time in the rounds of *blocks* that count, of this group [s]; see `estimate`."""
        rounds = {block.round for block in accepted_blocks(blocks)}
        found = {
            member.case.architecture: [
                block for block in accepted_blocks(member.blocks[since:]) if block.round in rounds
            ]
            for member, since in zip(self._members, self._since, strict=True)
        }
        return {name: estimate(known) for name, known in found.items() if known}

    def keep_block(self, group: str) -> Callable[[Member, Block], None]:
        """Return what writes each block of *group* as it is measured, an anchor's under a name of its own."""

        def keep(member: Member, block: Block) -> None:
            is_anchor = any(member is anchor for anchor in self._members)
            key = f"anchor/{member.case.key}" if is_anchor else member.case.key
            self._folder.record_block(key, group, block)

        return keep

    def close(self) -> None:
        """End the workers, and note why one failed if it did."""
        for member in self._members:
            member.worker.close()
        failures = [f"{member.case.architecture}: {member.failure}" for member in self._members if member.failure]
        if failures:
            self._folder.note({"anchor_failure": "; ".join(failures)})
