from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import largest
from bench.answer import Opened
from bench.job import Job
from bench.largest import MOST_BATCH, Largest, find_largest_batch
from bench.memory import Peak
from bench.process import WorkerError
from bench.records import Case
from tests.bench.conftest import make_case

A_GIB = 2**30


def opened(memory_bytes: int = 0, first_inference_s: float = 0.01) -> Opened:
    return Opened(
        prepare_s=0.1,
        artifact_bytes=None,
        parity=None,
        failure="",
        first_inference_s=first_inference_s,
        host=Peak(used_bytes=memory_bytes, source="VmHWM"),
    )


def search(open_batch: Callable[[Case], Opened], device: str = "cuda") -> Largest:
    """Return the largest batch from 32 on, of a runtime that `open_batch` stands for."""
    case = make_case(batch_size=32, device=device)

    def in_a_process(job: Job, case: Case) -> Opened:
        return open_batch(case)

    # No job is needed where no process is started.
    return find_largest_batch(None, case, opened(), in_a_process)  # type: ignore[arg-type]


def fails_from(batch_size: int, reason: str) -> Callable[[Case], Opened]:
    def open_batch(case: Case) -> Opened:
        if case.batch_size >= batch_size:
            raise WorkerError(reason)
        return opened()

    return open_batch


def test_the_batch_is_doubled_until_memory_runs_out() -> None:
    found = search(fails_from(300, "out of memory: OutOfMemoryError: CUDA out of memory"))

    assert found.batch == 256
    assert found.end == "batch 512: out of memory: OutOfMemoryError: CUDA out of memory"


def test_another_failure_ends_it_too_and_is_told_from_memory() -> None:
    assert "failed otherwise than for memory: SIGSEGV" in search(fails_from(64, "SIGSEGV")).end


def test_the_largest_asked_for_stands_where_no_larger_one_runs() -> None:
    assert search(fails_from(64, "out of memory")).batch == 32


def test_a_batch_that_would_take_more_than_its_share_of_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "available_memory", lambda: 10.0 * A_GIB)
    tried: list[int] = []

    def open_batch(case: Case) -> Opened:
        tried.append(case.batch_size)
        return opened(memory_bytes=case.batch_size * A_GIB // 64)

    found = search(open_batch, device="cpu")

    # 128 takes 2 GiB; 256 would take 4 of the 5 that are half of what is to spare, 512 would take 8.
    assert (found.batch, tried) == (256, [64, 128, 256])
    assert "batch 512 would take about 8.0 GiB" in found.end
    assert "50% of the 10.0 GiB to spare" in found.end


def test_a_batch_of_endless_calls_is_the_last() -> None:
    found = search(lambda case: opened(first_inference_s=case.batch_size / 10))

    assert found.batch == 256  # 25.6 s a call
    assert "takes 26 s" in found.end


def test_a_runtime_that_takes_everything_ends_at_the_stated_limit() -> None:
    found = search(lambda case: opened())

    assert found.batch == MOST_BATCH
    assert str(MOST_BATCH) in found.end
