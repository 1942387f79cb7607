"""The time of the GPU, over a stand-in for ``torch.cuda`` in which a piece of work takes a millisecond."""

from __future__ import annotations

import pytest
import torch

from bench.cuda_graph import GraphSession
from bench.gpu_time import FEWEST_CALLS, time_on_gpu
from tests.bench.conftest import lens_like_images, make_case
from tests.bench.fake_cuda import FakeCuda, FakeSession


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def buffers() -> list[torch.Tensor]:
    return list(lens_like_images(4).split(2))


@pytest.mark.parametrize(("own_streams", "stream"), [(False, 0), (True, 1)])
def test_the_events_are_on_the_stream_that_does_the_work(cuda: FakeCuda, own_streams: bool, stream: int) -> None:
    session = FakeSession(cuda, own_streams=own_streams)

    samples = time_on_gpu(session, buffers(), calls=3, most_s=10.0)  # type: ignore[arg-type]

    assert samples == (0.001,) * 3
    assert set(cuda.log) == {f"event on {stream}"}
    assert len(cuda.log) == 2 * 4  # one call is not timed


def test_a_graph_is_timed_on_its_own_stream(cuda: FakeCuda) -> None:
    session = GraphSession(FakeSession(cuda), make_case(variant="graph", batch_size=2), slots=1)  # type: ignore[arg-type]
    cuda.log.clear()

    assert time_on_gpu(session, buffers(), calls=2, most_s=10.0) == (0.001,) * 2
    number = session.stream_of(0).number  # type: ignore[attr-defined]  # of the stand-in
    assert number != 0
    assert {line for line in cuda.log if line.startswith("event")} == {f"event on {number}"}


def test_calls_end_with_the_time_but_for_the_fewest(cuda: FakeCuda) -> None:
    assert len(time_on_gpu(FakeSession(cuda), buffers(), calls=50, most_s=0.0)) == FEWEST_CALLS  # type: ignore[arg-type]


def test_a_session_that_names_no_stream_has_no_such_time(cuda: FakeCuda) -> None:
    class Silent:
        """Says nothing of streams."""

    assert time_on_gpu(Silent(), buffers(), calls=3, most_s=1.0) == ()  # type: ignore[arg-type]
