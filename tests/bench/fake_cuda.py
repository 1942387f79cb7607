"""A stand-in for what captures and replays in ``torch.cuda``: work is done on the CPU, in the order it was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from bench.records import Scalar

Work = Callable[[], object]


class FakeStream:
    """Knows its number alone; what it is told is in the log of its `FakeCuda`."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.number = cuda, len(cuda.streams)
        cuda.streams.append(self)

    def wait_stream(self, other: FakeStream) -> None:
        self._cuda.log.append(f"{self.number} waits for {other.number}")

    def synchronize(self) -> None:
        if self._cuda.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self._cuda.log.append(f"host waits for {self.number}")


class FakeEvent:
    """Is recorded at the time of its `FakeCuda`, in milliseconds, which each piece of work moves by one."""

    def __init__(self, cuda: FakeCuda, *, enable_timing: bool) -> None:
        assert enable_timing
        self._cuda = cuda

    def record(self, stream: FakeStream) -> None:
        self._cuda.log.append(f"event on {stream.number}")
        self.time_ms = self._cuda.time_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.time_ms - self.time_ms


class FakeGraph:
    """Keeps the work that was enqueued while it was captured, and does it again."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.work: list[Work] = []

    def replay(self) -> None:
        self._cuda.log.append(f"replay on {self._cuda.current.number}")
        for step in self.work:
            self._cuda.time_ms += 1.0
            step()


class FakeCuda:
    """One GPU whose default stream is 0."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.time_ms = 0.0
        self.streams: list[FakeStream] = []
        self.recording: FakeGraph | None = None
        self.current = FakeStream(self)

    def enqueue(self, step: Work) -> None:
        """Do *step* now, or at each replay if a graph is captured."""
        if self.recording is None:
            self.time_ms += 1.0
            step()
        else:
            self.recording.work.append(step)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this stand for what `bench.cuda_graph` uses of ``torch.cuda``; each must be there, with its arguments."""
        assert {"stream", "capture_error_mode"} <= inspect.signature(torch.cuda.graph).parameters.keys()
        assert hasattr(torch.cuda.CUDAGraph, "replay")
        for name in ("wait_stream", "synchronize"):
            assert hasattr(torch.cuda.Stream, name)
        for name in ("record", "synchronize", "elapsed_time"):
            assert hasattr(torch.cuda.Event, name)
        stand_ins = {
            "Stream": lambda: FakeStream(self),
            "CUDAGraph": lambda: FakeGraph(self),
            "Event": lambda enable_timing: FakeEvent(self, enable_timing=enable_timing),
            "current_stream": lambda: self.current,
            "stream": self._use,
            "graph": self._capture,
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    @contextmanager
    def _use(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _capture(self, graph: FakeGraph, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        assert stream.number != 0, "the default stream cannot be captured"
        before, self.current, self.recording = self.current, stream, graph
        try:
            yield
        except RuntimeError:
            # As torch.cuda.graph does: the end of a capture that was broken off raises before the stream is put back.
            self.recording = None
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904  # as there
        self.recording, self.current = None, before


class FakeSession:
    """Twice the sum of each image, by work that is enqueued.

    Args:
        cuda: Where.
        own_streams: Whether each slot has a stream of its own.
        waits: Whether a call waits for its stream, which no capture allows.
    """

    artifact_bytes = 7
    artifact_cached = True

    def __init__(self, cuda: FakeCuda, *, own_streams: bool = False, waits: bool = False) -> None:
        self._cuda, self._waits = cuda, waits
        self._streams = [FakeStream(cuda) for _ in range(2)] if own_streams else []
        self.is_closed = False

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        outputs = torch.full((len(images), 1), torch.nan)
        self._cuda.enqueue(lambda: outputs.copy_(2 * images.sum(dim=(1, 2, 3))[:, None]))
        if self._waits:
            self._cuda.current.synchronize()
        return outputs

    def stream_of(self, slot: int) -> FakeStream | None:
        return self._streams[slot] if self._streams else None

    def synchronize(self, slot: int | None = None) -> None:
        pass

    def evidence(self) -> dict[str, Scalar]:
        return {"precision": "fp32"}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True
