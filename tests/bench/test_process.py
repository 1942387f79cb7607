"""The parent's handle: what it makes of a worker that fails, dies or hangs."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench.job import Job
from bench.measure import BlockPlan
from bench.process import Oversight, Worker, WorkerError, available_memory, default_memory_limit
from bench.serve import serve
from lensing_models.data.simulate import simulate_dataset
from lensing_models.preset import Split
from lensing_models.registry import find_task
from tests.bench.conftest import make_case


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return the job of an anchor: random weights, no reference."""
    folder = tmp_path_factory.mktemp("worker")
    store = simulate_dataset(find_task("substructure"), Split(train=3, validation=3, test=12), folder / "data")
    return Job(
        case=make_case(batch_size=1),
        checkpoint=None,
        store=store.folder,
        workdir=folder / "artifacts",
        reference=None,
        outputs=folder / "outputs.npy",
        plan=BlockPlan(block_s=0.01, calls=3, discards=1, warmup_s=0.05),
    )


def test_a_worker_opens_times_and_gives_evidence(job: Job) -> None:
    worker = Worker(job)
    try:
        opened = worker.ask("open", 2, 2, 0)
        samples = worker.ask("block")
        evidence, digest = worker.ask("evidence")
    finally:
        worker.close()

    assert opened.failure == ""
    assert len(samples) >= 3
    assert all(sample > 0 for sample in samples)
    assert (evidence["precision"], evidence["threads"]) == ("fp32", 2)
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("most", "available"),
    [
        ("2000000000", 1_200_000_000),  # 1.9 GB in use, of which 1.1 GB are files that nobody has mapped
        ("max", None),
    ],
)
def test_files_that_are_kept_in_memory_are_available_in_a_container(
    tmp_path: Path, most: str, available: float | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("1900000000\n")
    parts = "anon 700000000\nfile 1200000000\nfile_mapped 100000000\n"
    (tmp_path / "memory.stat").write_text(f"{parts}inactive_file 900000000\nactive_file 300000000\n")

    found = available_memory(tmp_path)

    assert found == (available or pytest.approx(psutil.virtual_memory().available, rel=0.2))


def test_inputs_are_the_same_bytes_for_every_backend(job: Job) -> None:
    digests = set()
    for backend in ("eager", "torchscript"):
        worker = Worker(replace(job, case=replace(job.case, backend=backend)))
        try:
            worker.ask("open", 4, 2, 0)
            digests.add(worker.ask("evidence")[1])
        finally:
            worker.close()

    assert len(digests) == 1


def test_an_error_in_the_worker_becomes_its_reason(job: Job) -> None:
    worker = Worker(replace(job, store=Path("nowhere")))
    try:
        with pytest.raises(WorkerError, match="nowhere"):
            worker.ask("open", 1, 2, 0)
    finally:
        worker.close()


def test_a_worker_that_dies_is_told_from_one_that_fails(job: Job) -> None:
    worker = Worker(job)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="died in open: SIGKILL"):
            worker.ask("open", 1, 2, 0)
    finally:
        worker.close()


def test_a_worker_that_hangs_is_killed(job: Job) -> None:
    worker = Worker(job)
    try:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match="hung: no answer to open within 1 s"):
            worker.ask("open", 1, 2, 0, patience_s=1.0)
        with pytest.raises(WorkerError, match="hung"):  # not the SIGKILL that was ours
            worker.ask("open", 1, 2, 0)
    finally:
        worker.close()


def test_no_call_waits_longer_than_the_limit_of_a_stage(job: Job) -> None:
    worker = Worker(job, Oversight(stage_s=0.5))
    try:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=r"hung: no answer to block within 0.5 s"):
            worker.ask("block", patience_s=300.0)
    finally:
        worker.close()


def test_a_worker_that_uses_too_much_memory_is_killed(job: Job) -> None:
    worker = Worker(job, Oversight(memory_bytes=2**20))
    try:
        with pytest.raises(WorkerError, match=r"used more than 0.000977 GiB of memory in open; killed"):
            worker.ask("open", 1, 2, 0)
    finally:
        worker.close()

    assert not psutil.pid_exists(worker.pid)


def test_after_its_end_a_worker_is_made_anew(job: Job) -> None:
    worker = Worker(job)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        worker.ask("open", 1, 2, 0)

    again = worker.restarted()
    try:
        assert again.ask("open", 1, 2, 0).failure == ""
    finally:
        again.close()


def test_the_default_memory_limit_leaves_something_to_the_others() -> None:
    assert 0 < default_memory_limit() < psutil.virtual_memory().total


def test_a_worker_settles_how_numbers_are_multiplied_before_it_answers(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        """A connection whose parent has hung up."""

        def recv(self) -> object:
            raise EOFError

    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    monkeypatch.setattr("bench.serve.signal.signal", lambda *_: None)  # this process still answers Ctrl-C

    serve(Gone(), job)  # type: ignore[arg-type]  # all that is asked of it

    assert "ONEDNN_DEFAULT_FPMATH_MODE" not in os.environ
