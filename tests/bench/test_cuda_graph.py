"""The variant `graph`, over a stand-in for ``torch.cuda``; `gpu` tests do it on a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.backends import known_backends
from bench.cuda_graph import WARM_UP_CALLS, GraphSession, prepare_session
from bench.parity import compare, run_through
from bench.plan import why_not
from bench.records import Case
from lensing_models.network import LensNetwork
from tests.bench.conftest import lens_like_images, make_case
from tests.bench.fake_cuda import FakeCuda, FakeSession


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def case() -> Case:
    """Return a case with a graph; on the CPU, where the stand-in works."""
    return make_case(variant="graph", batch_size=2)


def truth(images: torch.Tensor) -> torch.Tensor:
    return 2 * images.sum(dim=(1, 2, 3))[:, None]


def prepare(session: object, case: Case) -> object:
    backend = SimpleNamespace(prepare=lambda *_: session)
    return prepare_session(backend, None, case, Path(), slots=2)  # type: ignore[arg-type]  # neither is looked into


def test_a_replay_answers_for_the_images_of_its_call(cuda: FakeCuda, case: Case) -> None:
    images = lens_like_images(4)
    session = GraphSession(FakeSession(cuda), case, slots=1)  # type: ignore[arg-type]

    first = session.infer(images[:2]).clone()
    second = session.infer(images[2:]).clone()

    assert torch.equal(first, truth(images[:2]))
    assert torch.equal(second, truth(images[2:]))


def test_the_outputs_of_a_slot_are_one_buffer_and_no_other_slots(cuda: FakeCuda, case: Case) -> None:
    images = lens_like_images(4)
    session = GraphSession(FakeSession(cuda), case, slots=2)  # type: ignore[arg-type]

    first, second = session.infer(images[:2], slot=0), session.infer(images[2:], slot=1)

    assert session.infer(images[:2], slot=0).data_ptr() == first.data_ptr()
    assert torch.equal(torch.cat([first, second]), truth(images))


@pytest.mark.parametrize("own_streams", [False, True])
def test_a_slot_replays_on_its_stream_behind_the_callers(cuda: FakeCuda, case: Case, own_streams: bool) -> None:
    session = GraphSession(FakeSession(cuda, own_streams=own_streams), case, slots=2)  # type: ignore[arg-type]
    cuda.log.clear()

    session.infer(lens_like_images(2), slot=1)
    session.synchronize(1)

    assert cuda.log == ["2 waits for 0", "replay on 2", "host waits for 2"]


def test_it_is_warmed_up_before_the_capture_and_waited_for(cuda: FakeCuda, case: Case) -> None:
    seen: list[str] = []
    inner = FakeSession(cuda)
    infer = inner.infer

    def watched(images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        seen.append("captured" if cuda.recording else "called")
        return infer(images, slot)

    inner.infer = watched  # type: ignore[method-assign]
    GraphSession(inner, case, slots=1)  # type: ignore[arg-type]

    assert seen == ["called"] * WARM_UP_CALLS + ["captured"]
    assert cuda.log == ["1 waits for 0", "host waits for 1"]


def test_the_evidence_says_who_captured(cuda: FakeCuda, case: Case) -> None:
    session = prepare(FakeSession(cuda), case)

    assert session.evidence() == {"precision": "fp32", "cuda_graph": "captured around the session"}  # type: ignore[attr-defined]
    assert (session.artifact_bytes, session.artifact_cached) == (7, True)  # type: ignore[attr-defined]


def test_closing_closes_what_was_captured(cuda: FakeCuda, case: Case) -> None:
    inner = FakeSession(cuda)

    with prepare(inner, case):  # type: ignore[attr-defined]
        assert not inner.is_closed

    assert inner.is_closed


def test_a_call_that_waits_is_a_failure_with_its_reason(cuda: FakeCuda, case: Case) -> None:
    inner = FakeSession(cuda, waits=True)

    with pytest.raises(RuntimeError, match="could not be captured as a CUDA graph: operation not permitted"):
        prepare(inner, case)

    assert inner.is_closed
    assert cuda.current.number == 0


def test_a_runtime_that_captures_itself_does_where_we_cannot(cuda: FakeCuda, case: Case) -> None:
    inner, own = FakeSession(cuda, waits=True), FakeSession(cuda)
    reasons: list[str] = []

    def with_own_graph(reason: str) -> FakeSession:
        reasons.append(reason)
        return own

    inner.with_own_graph = with_own_graph  # type: ignore[attr-defined]

    assert prepare(inner, case) is own
    assert reasons == ["operation not permitted when stream is capturing"]


def test_another_variant_is_left_as_it_is(cuda: FakeCuda) -> None:
    inner = FakeSession(cuda)

    assert prepare(inner, make_case(variant="optimized")) is inner


@pytest.mark.gpu
@pytest.mark.parametrize("name", known_backends())
def test_a_captured_call_answers_as_a_plain_one(
    name: str, build: Callable[[str, str], LensNetwork], workdir: Path
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    plain, graph = (make_case(backend=name, device="cuda", variant=variant) for variant in ("default", "graph"))
    if reason := why_not(plain, known_backends()):
        pytest.skip(reason)
    images = lens_like_images(6)
    answers = []

    for case in (plain, graph):
        network = build(case.architecture, case.task)
        with prepare_session(known_backends()[name], network, case, workdir, slots=1) as session:
            answers.append(run_through(session, images, case))
            evidence = session.evidence()

    assert compare(answers[1], answers[0], "fp32").passed
    assert evidence["cuda_graph"]
