"""One batch from the store's own values to a NumPy array of answers, each stage timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench.measure import stopwatch, time_chain

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bench.backends.base import Session
    from lensing_models.data.store import Store

    Stored = NDArray[np.generic]

#: Calls that are timed in any case, after one that is not.
FEWEST_CALLS = 2


def time_stages(
    session: Session, store: Store, batches: Sequence[Stored], device: str, *, calls: int, most_s: float
) -> tuple[tuple[float, ...], ...]:
    """Return, for each stage and then for the whole, the wall time of each call [s].

    The stages are those of `bench.records.Stages`, in its order. The first call is thrown away.

    Args:
        session: Open, one slot.
        store: Whose values the batches are.
        batches: Values as they are stored, (B, C, H, W) on the host, taken in turn.
        device: ``cpu`` or ``cuda``.
        calls: Timed calls.
        most_s: Seconds after which fewer are enough, `FEWEST_CALLS` at least.
    """
    steps = make_steps(session, store, device)
    time_chain(steps, batches[0])
    elapsed = stopwatch()
    samples = [time_chain(steps, batches[turn % len(batches)]) for turn in range(FEWEST_CALLS)]
    while len(samples) < calls and elapsed() < most_s:
        samples.append(time_chain(steps, batches[len(samples) % len(batches)]))
    return tuple(zip(*samples, strict=True))


def make_steps(session: Session, store: Store, device: str) -> list[Callable[[Any], Any]]:  # each feeds the next
    """Return the stages as functions, each taking what the one before returns."""
    from lensing_models.data.preprocess import scale_to_unit

    pinned: list[torch.Tensor] = []

    def copy_in(images: torch.Tensor) -> torch.Tensor:
        if device != "cuda":
            return images.to(device)
        import torch

        if not pinned:  # made once, by the call that is thrown away
            pinned.append(torch.empty_like(images, pin_memory=True))
        there = pinned[0].copy_(images).to(device, non_blocking=True)
        torch.cuda.synchronize()
        return there

    def compute(images: torch.Tensor) -> torch.Tensor:
        outputs = session.infer(images)
        session.synchronize()
        return outputs

    def copy_out(outputs: torch.Tensor) -> Stored:
        # A copy on the CPU too: the session writes into its buffer again.
        answers: Stored = outputs.cpu().numpy().copy()
        return answers

    return [store.decode, scale_to_unit, copy_in, compute, copy_out]
