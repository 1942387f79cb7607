"""The runtime variant `graph`: a CUDA graph of one call, captured around any session and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.backends.base import Backend, Session
from bench.records import GRAPH, Case, Scalar
from lensing_models.registry import find_task

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork

#: Calls before the capture: they make what is made once (workspaces, chosen algorithms, arenas).
WARM_UP_CALLS = 3


def prepare_session(backend: Backend, network: LensNetwork, case: Case, workdir: Path, slots: int) -> Session:
    """Return the session of *case*; of its variant `graph`, with the call captured.

    Where our capture fails and the session can capture itself, by a method ``with_own_graph``, that is used
    instead, and the evidence says so.

    Raises:
        RuntimeError: If the runtime cannot build the session, or nobody can capture its call.
    """
    session = backend.prepare(network, case, workdir, slots)
    if not case.has_variant(GRAPH):
        return session
    try:
        return GraphSession(session, case, slots)
    except RuntimeError as error:
        session.__exit__(type(error), error, error.__traceback__)
        own = getattr(session, "with_own_graph", None)
        if own is None:
            raise RuntimeError(f"the call could not be captured as a CUDA graph: {error}") from error
        captured: Session = own(str(error))
        return captured


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """One slot's graph, with the stream it is replayed on and the buffers it reads and writes."""

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    images: torch.Tensor
    outputs: torch.Tensor


class GraphSession:
    """Copies the images into a buffer of the slot's own and replays the slot's graph, on the slot's stream.

    Args:
        session: What is captured. A slot's work must be on one stream: that of its method ``stream_of``,
            or, where it has none, the caller's current one.
        case: What is run.
        slots: Requests that may be in flight at once; each has a graph.

    Raises:
        RuntimeError: If the call cannot be captured: it waits, allocates outside torch, or forks a stream.
    """

    def __init__(self, session: Session, case: Case, slots: int) -> None:
        self._session = session
        self.artifact_bytes, self.artifact_cached = session.artifact_bytes, session.artifact_cached
        self._slots = [capture(session, case, slot) for slot in range(slots)]

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Enqueue copy and graph behind the caller's stream; return the slot's own buffer (B, K)."""
        import torch

        place = self._slots[slot]
        place.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(place.stream):
            place.images.copy_(images, non_blocking=True)
            place.graph.replay()
        return place.outputs

    def stream_of(self, slot: int) -> torch.cuda.Stream:
        """Return the stream on which the slot's graph is replayed."""
        return self._slots[slot].stream

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the streams of all slots, or for that of *slot*."""
        for place in self._slots if slot is None else [self._slots[slot]]:
            place.stream.synchronize()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return what the captured session says, and who captured it."""
        return {**self._session.evidence(), "cuda_graph": "captured around the session"}

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait, then free the graphs before what they were captured from."""
        if error is None:
            self.synchronize()
        self._slots.clear()
        self._session.__exit__(kind, error, trace)


def capture(session: Session, case: Case, slot: int) -> Captured:
    """Return the graph of one call of *session* on *slot*, captured after `WARM_UP_CALLS` of them.

    Raises:
        RuntimeError: If CUDA refuses; the message is its own.
    """
    import torch

    images = torch.rand(case.batch_size, *find_task(case.task).image_shape, device=case.device)
    find_stream = getattr(session, "stream_of", None)
    # The default stream cannot be captured.
    stream = (find_stream(slot) if find_stream else None) or torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            session.infer(images, slot)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer one puts the current stream back where the end of a capture that was broken off raises. Of this
        # thread alone: what another one does to the device meanwhile is no part of the call.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            outputs = session.infer(images, slot)
    except RuntimeError as error:
        # That end says only that there was an error before.
        raise error.__context__ if isinstance(error.__context__, RuntimeError) else error from None
    return Captured(graph=graph, stream=stream, images=images, outputs=outputs)
