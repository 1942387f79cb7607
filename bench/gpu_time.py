"""What the GPU itself takes for one request: the time between two events on the stream that does the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.measure import stopwatch

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session

#: Calls that are timed in any case, after one that is not.
FEWEST_CALLS = 2


def time_on_gpu(session: Session, buffers: Sequence[torch.Tensor], *, calls: int, most_s: float) -> tuple[float, ...]:
    """Return the time of the GPU for each of *calls* requests, one after the other [s].

    From where the stream reaches the first event, with nothing before it, to where it has done all work of the
    call. What the host needs longer for than the GPU, such as the launch of many small kernels, is in it.

    Args:
        session: Open on CUDA, one slot.
        buffers: Images (B, C, H, W) on the device, taken in turn.
        calls: Timed calls.
        most_s: Seconds after which fewer are enough, `FEWEST_CALLS` at least.

    Returns:
        Empty for a session that does not say on which stream its work is (``stream_of``).
    """
    import torch

    find_stream = getattr(session, "stream_of", None)
    if find_stream is None:
        return ()
    stream = find_stream(0) or torch.cuda.current_stream()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's own
    samples: list[float] = []
    elapsed = stopwatch()
    for turn in range(1 + calls):
        if turn > FEWEST_CALLS and elapsed() > most_s:
            break
        begin.record(stream)
        session.infer(buffers[turn % len(buffers)])
        end.record(stream)
        session.synchronize()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3)
    return tuple(samples[1:])
