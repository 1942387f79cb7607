"""The largest batch that a runtime takes: doubled until memory ends, or patience, or a stated limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.answer import Opened
from bench.job import Job
from bench.memory import is_out_of_memory
from bench.process import Oversight, Worker, WorkerError, available_memory
from bench.records import Case

#: Share of the memory that the machine has to spare which a batch may take on the CPU: beyond it the
#: system would end processes, and not necessarily ours.
MEMORY_SHARE = 0.5
#: A batch that is larger than this answers no question.
MOST_BATCH = 16_384
#: Batches whose first call takes longer are the last ones tried [s].
LONGEST_CALL_S = 20.0
#: Seconds within which a session of one batch must stand and have answered.
PATIENCE_S = 300.0


OpenBatch = Callable[[Job, Case], Opened]


@dataclass(frozen=True, kw_only=True, slots=True)
class Largest:
    """What was found: the largest batch that ran, and why no larger one did."""

    batch: int
    end: str


def find_largest_batch(job: Job, case: Case, known: Opened, open_batch: OpenBatch) -> Largest:
    """Return the largest batch, that of *case* doubled and doubled again, which a fresh process opens and runs.

    Args:
        job: Of the worker.
        case: The largest batch that was asked for; it has run.
        known: What its session took.
        open_batch: Opens a batch in a process of its own; raises WorkerError.
    """
    largest, latest = case.batch_size, known
    while True:
        batch = 2 * largest
        if reason := why_no_larger(batch, latest, case.device):
            return Largest(batch=largest, end=reason)
        try:
            latest = open_batch(job, replace(case, batch_size=batch))
        except WorkerError as error:
            text = " ".join(str(error).split())
            what = "" if is_out_of_memory(text) else "failed otherwise than for memory: "
            return Largest(batch=largest, end=f"batch {batch}: {what}{text}")
        largest = batch


def why_no_larger(batch: int, latest: Opened, device: str) -> str:
    """Return why *batch* is not tried after *latest*, which was half as large; empty if it is."""
    if batch > MOST_BATCH:
        return f"batch {batch} is beyond {MOST_BATCH}, the most that is tried"
    if (latest.first_inference_s or 0.0) > LONGEST_CALL_S:
        return f"a call of batch {batch // 2} takes {latest.first_inference_s:.0f} s, over {LONGEST_CALL_S:.0f}"
    if device == "cpu":
        spare = available_memory()
        needed = 2 * (latest.host.used_bytes or 0)
        if needed > MEMORY_SHARE * spare:
            return (
                f"batch {batch} would take about {needed / 2**30:.1f} GiB, twice that of {batch // 2}; "
                f"the limit is {MEMORY_SHARE:.0%} of the {spare / 2**30:.1f} GiB to spare"
            )
    return ""


def open_alone(job: Job, case: Case, oversight: Oversight) -> Opened:
    """Open *case* in a process of its own, under *oversight*, and return what it took, its outputs not compared.

    Raises:
        WorkerError: If it fails, dies or hangs.
    """
    worker = Worker(job, oversight)
    try:
        opened: Opened = worker.ask("open", case.batch_size, case.threads, 0, patience_s=PATIENCE_S)
    finally:
        worker.close()
    return opened
