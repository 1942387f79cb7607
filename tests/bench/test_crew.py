from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from bench.answer import Opened
from bench.crew import Crew
from bench.process import WorkerError
from bench.records import Scalar
from tests.bench.conftest import make_case


@dataclass
class Frail:
    """Stands for a worker that dies of one batch size."""

    deadly: int
    ended: str = ""
    asked: list[int] = field(default_factory=list)
    built: set[int] | None = None

    def ask(self, name: str, batch_size: int, threads: int, compared: int) -> Opened:
        self.asked.append(batch_size)
        if batch_size == self.deadly:
            self.ended = "the process died in open: SIGSEGV"
            raise WorkerError(self.ended)
        if self.built is None:
            return Opened(prepare_s=0.1, artifact_bytes=None, parity=None, failure="")
        is_built = batch_size in self.built
        self.built.add(batch_size)
        prepare_s = 0.1 if is_built else 60.0
        return Opened(prepare_s=prepare_s, artifact_bytes=1, parity=None, failure="", artifact_cached=is_built)

    def kill(self) -> None:
        self.ended = self.ended or "killed"

    def restarted(self, settings: Mapping[str, Scalar]) -> Frail:
        return Frail(self.deadly, built=self.built)


@pytest.mark.parametrize("sizes", [(1, 32), (32, 1)])
def test_a_batch_size_that_kills_its_worker_costs_no_other_one(sizes: tuple[int, int]) -> None:
    crew = Crew(worker=Frail(deadly=32), quality={}, quality_images=0, parity=None)  # type: ignore[arg-type]

    failures = {size: crew.open(make_case(batch_size=size)) for size in sizes}

    assert failures == {1: "", 32: "the process died in open: SIGSEGV"}


def test_what_a_process_had_to_build_another_one_loads() -> None:
    worker = Frail(deadly=0, built={1})
    crew = Crew(worker=worker, quality={}, quality_images=0, parity=None, build_s=50.0, artifact_cached=False)  # type: ignore[arg-type]

    known = []
    for size in (1, 32):
        assert crew.open(make_case(batch_size=size)) == ""
        known.append(crew.measurement({}, "digest"))

    assert [(row.build_s, row.artifact_cached, row.load_s) for row in known] == [(50.0, False, 0.1), (60.0, False, 0.1)]


def test_a_case_that_is_measured_once_more_keeps_the_build_that_was_its_own() -> None:
    """The crew knows that of whichever batch size was recorded last."""
    crew = Crew(worker=Frail(deadly=0), quality={}, quality_images=0, parity=None, build_s=50.0, artifact_cached=False)  # type: ignore[arg-type]
    crew.open(make_case(batch_size=32))
    first = dataclasses.replace(crew.measurement({}, "digest"), build_s=7.0, artifact_cached=True)

    again = crew.measurement({}, "digest", earlier=first)

    assert (again.build_s, again.artifact_cached) == (7.0, True)
    assert again.load_s == 0.1
