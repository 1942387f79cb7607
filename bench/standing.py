"""What an earlier attempt at a run has left that need not be done again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.knob import untuned
from bench.plan import PlannedCase
from bench.recorder import Recorder
from bench.records import RunRecord
from bench.run_folder import RunFolder
from bench.tune import Tuner


def standing_records(
    folder: RunFolder, cases: Sequence[PlannedCase], recorder: Recorder, tuner: Tuner, *, is_timed: bool
) -> dict[str, RunRecord]:
    """Return by case key the records that stand: measured, if this run measures, or skipped for today's reason.

    Args:
        folder: Of the run.
        cases: Its plan.
        recorder: Knows today's weights and data.
        tuner: Knows for which tuned cases nothing was faster.
        is_timed: Whether this run measures.

    Raises:
        ValueError: If one was measured with other weights or other data.
    """
    reasons = {planned.case.key: planned.skip_reason for planned in cases}
    stands = {
        key: record
        for key, record in folder.finished().items()
        if (record.status == "ok" and (record.timing or not is_timed))
        or (record.status == "skipped" and record.reason == reasons.get(key))
        or (record.status == "skipped" and tuner.keeps_defaults(record.case))
    }
    for key, record in stands.items():
        now = recorder.blank(record.case) if key in reasons and record.status == "ok" else record
        if (now.checkpoint_sha256, now.dataset_digest) != (record.checkpoint_sha256, record.dataset_digest):
            raise ValueError(f"{key} was measured with other weights or data; choose another --out")
    return stands


def scored_workers(folder: RunFolder, finished: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """Return by worker key a record of each network that was scored and whose outputs are there.

    Without them nothing could be held against what was scored, and so it is scored again.
    """
    return {
        untuned(record.case).worker_key: record
        for record in finished
        if record.quality and folder.outputs_file(untuned(record.case).worker_key).exists()
    }
