from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bench.answer import Opened
from bench.crew import Crew
from bench.process import WorkerError
from tests.bench.conftest import make_case


@dataclass
class Frail:
    """Stands for a worker that dies of one batch size."""

    deadly: int
    ended: str = ""
    asked: list[int] = field(default_factory=list)

    def ask(self, name: str, batch_size: int, threads: int, compared: int) -> Opened:
        self.asked.append(batch_size)
        if batch_size == self.deadly:
            self.ended = "the process died in open: SIGSEGV"
            raise WorkerError(self.ended)
        return Opened(prepare_s=0.1, artifact_bytes=None, parity=None, failure="")

    def kill(self) -> None:
        self.ended = self.ended or "killed"

    def restarted(self) -> Frail:
        return Frail(self.deadly)


@pytest.mark.parametrize("sizes", [(1, 32), (32, 1)])
def test_a_batch_size_that_kills_its_worker_costs_no_other_one(sizes: tuple[int, int]) -> None:
    crew = Crew(worker=Frail(deadly=32), quality={}, quality_images=0, parity=None)  # type: ignore[arg-type]

    failures = {size: crew.open(make_case(batch_size=size)) for size in sizes}

    assert failures == {1: "", 32: "the process died in open: SIGSEGV"}
