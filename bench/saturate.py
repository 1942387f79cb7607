"""Keep every slot of a session busy at once, and note when calls end: what a runtime gives at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.measure import LONG_CALL_S, MOST_CALLS, SETTLED, BlockPlan, stopwatch

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session

#: Requests in flight, each of a caller of its own.
IN_FLIGHT = 2


@dataclass(kw_only=True, slots=True)
class Window:
    """The part of a block in which every slot is at work; all that is counted happens in it.

    It begins when each slot has done its discarded calls, with the last of these, and ends with a
    completion of that same slot, when each has completed a call since the block was long enough:
    slots that end in step, or nearly so, then bias no count.

    Attributes:
        elapsed: Seconds since the block began.
        slots: How many there are.
        discards: Calls of each slot before the window.
        block_s: Shortest length of the window [s].
        calls: Fewest completions in it.
        once: Whether each slot makes a single call, of a session whose calls are long.
    """

    elapsed: Callable[[], float]
    slots: int
    discards: int
    block_s: float
    calls: int
    once: bool
    ends: list[float] = field(default_factory=list)
    is_over: bool = False
    _done: dict[int, int] = field(default_factory=dict)
    _late: set[int] = field(default_factory=set)
    _begun_s: float | None = None
    _begun_by: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, slot: int) -> bool:
        """Note that *slot* has completed a call now; return whether it makes another."""
        with self._lock:
            now = self.elapsed()
            if self.is_over:
                return False
            if self._begun_s is None:
                self._done[slot] = self._done.get(slot, 0) + 1
                if len(self._done) == self.slots and min(self._done.values()) >= self.discards:
                    self._begun_s, self._begun_by = now, slot
                return True
            self.ends.append(now)
            if now - self._begun_s >= self.block_s and len(self.ends) >= self.calls:
                self._late.add(slot)
            is_complete = len(self._late) == self.slots and self._begun_by in (slot, None)
            self.is_over = is_complete or len(self.ends) >= MOST_CALLS
            return not (self.is_over or self.once)

    def begin(self) -> None:
        """Count from now on where nothing is discarded."""
        if self.discards == 0:
            self._begun_s = self.elapsed()

    def samples(self) -> tuple[float, ...]:
        """Return the times between consecutive completions [s]; their sum is the length of the window."""
        begun_s = self._begun_s or 0.0
        return tuple(later - earlier for earlier, later in zip([begun_s, *self.ends], self.ends, strict=False))


def _limit_pool() -> None:
    """Give the pool of this thread as many threads as torch has been told.

    OpenMP keeps that number for each thread by itself, and torch passes it on where its own operators run in
    parallel, which compiled code need not do: oneDNN would take every core for each caller.
    """
    import torch

    torch.set_num_threads(torch.get_num_threads())


class Saturation:
    """Times a session whose slots are each driven by a thread of its own; a context manager that ends them.

    Args:
        session: Prepared for as many slots as *slots*.
        inputs: At least one batch; the slots take them in turn, each beginning at another.
        plan: How long a block is.
        slots: Requests in flight.
    """

    def __init__(self, session: Session, inputs: list[torch.Tensor], plan: BlockPlan, slots: int = IN_FLIGHT) -> None:
        self._session, self._inputs, self._plan, self._slots = session, inputs, plan, slots
        # The threads stay: torch's OpenMP gives each of them a pool of its own.
        self._callers = ThreadPoolExecutor(slots, initializer=_limit_pool)
        self._is_long = False

    def warm_up(self) -> tuple[int, bool]:
        """Call until the rates of short blocks settle, or the time is over; see `Clock.warm_up`."""
        elapsed = stopwatch()
        # The first may have been held up.
        self._is_long = self._call() >= LONG_CALL_S and self._call() >= LONG_CALL_S
        if self._is_long:
            return 1, True
        means = [self._mean_interval()]
        while len(means) < 2 or elapsed() < self._plan.warmup_s:
            means.append(self._mean_interval())
            if abs(means[-1] / means[-2] - 1) < SETTLED:
                return len(means), True
        return len(means), False

    def block(self) -> tuple[float, ...]:
        """Return the times between consecutive completions of one block [s], of whichever slot.

        A session whose first two calls took `LONG_CALL_S` or more each has blocks of one call a slot and
        discards none.
        """
        return self._run(self._plan.block_s, self._plan.calls * self._slots)

    def _call(self) -> float:
        """Return the time of one call on the first slot, alone [s]."""
        elapsed = stopwatch()
        self._session.infer(self._inputs[0], slot=0)
        self._session.synchronize(0)
        return elapsed()

    def _mean_interval(self) -> float:
        samples = self._run(self._plan.block_s / 4, self._slots)
        return sum(samples) / len(samples)

    def _run(self, block_s: float, calls: int) -> tuple[float, ...]:
        window = Window(
            elapsed=stopwatch(),
            slots=self._slots,
            discards=0 if self._is_long else max(1, self._plan.discards),
            block_s=0.0 if self._is_long else block_s,
            calls=1 if self._is_long else calls,
            once=self._is_long,
        )
        together = threading.Barrier(self._slots, action=window.begin)
        futures = [self._callers.submit(self._drive, slot, window, together) for slot in range(self._slots)]
        for future in futures:
            future.result()
        return window.samples()

    def _drive(self, slot: int, window: Window, together: threading.Barrier) -> None:
        """Call on *slot* until *window* is over."""
        turn = slot * len(self._inputs) // self._slots
        together.wait()
        try:
            while True:
                self._session.infer(self._inputs[turn % len(self._inputs)], slot=slot)
                self._session.synchronize(slot)
                turn += 1
                if not window.note(slot):
                    return
        finally:
            # A slot that fails must not leave the other calling for ever.
            window.is_over = window.is_over or not window.once

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads; each has ended its call."""
        self._callers.shutdown()
