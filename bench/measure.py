"""Warm up, sample, and watch for other people's load: the only module that reads clocks."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session

T = TypeVar("T")

#: The unit in which the system counts foreign load [s], and how many of it a block may show beyond its limit.
TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
CHANCE_TICKS = 2
#: Sessions with slower calls than this have blocks of one call: what a 2-core machine needs for a
#: large network at a large batch.
LONG_CALL_S = 0.4
#: Calls that a block has at most: what takes no time at all is not called for ever.
MOST_CALLS = 10_000
#: Change between consecutive medians below which a warm-up has settled.
SETTLED = 0.1
#: The same for the clock of a GPU, which steps by less than 1 %.
SETTLED_CLOCK = 0.02


def utc_now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stopwatch() -> Callable[[], float]:
    """Return a function that tells the seconds since this call."""
    started = time.perf_counter()
    return lambda: time.perf_counter() - started


def busy_wait(duration_s: float) -> None:
    """Keep this thread busy for *duration_s* [s]."""
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        pass


def rest(duration_s: float) -> None:
    """Leave the processor to others for *duration_s* [s]."""
    time.sleep(duration_s)


def time_chain(steps: Sequence[Callable[[Any], Any]], start: object) -> tuple[float, ...]:  # each feeds the next
    """Return the wall time of each of *steps*, the first fed *start* and each other what the last returned [s].

    Behind them stands that of the whole, which is measured, not added up.
    """
    value, marks = start, [time.perf_counter()]
    for step in steps:
        value = step(value)
        marks.append(time.perf_counter())
    return (*(later - earlier for earlier, later in itertools.pairwise(marks)), marks[-1] - marks[0])


def prolong(work: Callable[[], T], share: float) -> T:
    """Return what *work* returns after its time and *share* of that again, waited busily."""
    started = time.perf_counter()
    result = work()
    busy_wait(share * (time.perf_counter() - started))
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """How long a block is.

    Attributes:
        block_s: Shortest sum of timed calls [s].
        calls: Fewest timed calls.
        discards: Calls before them that are not timed: they wake the pools and fill the caches.
        warmup_s: Longest warm-up [s]; at least two medians are taken in any case.
    """

    block_s: float
    calls: int
    discards: int
    warmup_s: float


class Clock:
    """Times one session on rotating inputs.

    Args:
        session: What is timed: `infer` and `synchronize` together, as wall time of the host.
        inputs: At least one batch; consecutive calls get consecutive ones.
        plan: How long a block is.
    """

    def __init__(self, session: Session, inputs: list[torch.Tensor], plan: BlockPlan) -> None:
        if not inputs:
            raise ValueError("no input to time a session on")
        self._session, self._inputs, self._plan, self._turn = session, inputs, plan, 0
        self._long = False

    def call(self) -> float:
        """Return the wall time of one inference [s]."""
        images = self._inputs[self._turn % len(self._inputs)]
        self._turn += 1
        infer, synchronize = self._session.infer, self._session.synchronize
        started = time.perf_counter()
        infer(images)
        synchronize()
        return time.perf_counter() - started

    def input_digest(self) -> str:
        """Return the SHA-256 of the inputs as they are now: a runtime that wrote into one has changed it."""
        digest = hashlib.sha256()
        for images in self._inputs:
            digest.update(images.cpu().numpy().tobytes())
        return digest.hexdigest()

    def warm_up(self, sm_clock_mhz: Callable[[], int | None] | None = None) -> tuple[int, bool]:
        """Call until the medians of short blocks settle, and the clock of a GPU; or the time is over.

        Two calls of `LONG_CALL_S` or more are warm-up enough: nothing that wakes up takes so long.

        Args:
            sm_clock_mhz: Reads the clock of the GPU [MHz]; without it, or where it tells none, only the
                medians must settle. A clock that has not settled when the time is over is no fault
                of its own: what it moves shows in the blocks.

        Returns:
            The number of short blocks and whether the last two medians agreed within 10 %.
        """
        read_clock = sm_clock_mhz or (lambda: None)
        elapsed, medians, clocks = stopwatch(), [self._short_median()], [read_clock()]
        self._long = medians[0] >= LONG_CALL_S
        if self._long:
            return 1, True
        settled = False
        while len(medians) < 2 or elapsed() < self._plan.warmup_s:
            medians.append(self._short_median())
            clocks.append(read_clock())
            settled = abs(medians[-1] / medians[-2] - 1) < SETTLED
            if settled and _is_steady(*clocks[-2:]):
                break
        return len(medians), settled

    def block(self) -> tuple[float, ...]:
        """Return the wall times of the timed calls of one block [s].

        A session whose first two calls took `LONG_CALL_S` or more each has blocks of one call and
        discards none: waking up is nothing beside such a call.
        """
        if self._long:
            return (self.call(),)
        for _ in range(self._plan.discards):
            self.call()
        return tuple(self._samples(self._plan.block_s))

    def run_for(self, window_s: float) -> tuple[int, float]:
        """Call back to back for *window_s* [s]; return the number of calls and the time that they took [s]."""
        elapsed, calls = stopwatch(), 0
        while elapsed() < window_s:
            self.call()
            calls += 1
        return calls, elapsed()

    def rested(self, calls: int, rest_s: float) -> tuple[float, ...]:
        """Return the wall times of *calls* inferences, before each of which nothing is asked for *rest_s* [s]."""
        return tuple(self.burst(1, rest_s) for _ in range(calls))

    def burst(self, calls: int, rest_s: float) -> float:
        """Return the time until the last of *calls* inferences that are wanted at once is done [s].

        They are made one after the other, after *rest_s* [s] in which nothing is asked for.
        """
        time.sleep(rest_s)
        elapsed = stopwatch()
        for _ in range(calls):
            self.call()
        return elapsed()

    def _short_median(self) -> float:
        first = self.call()
        if first >= LONG_CALL_S:
            first = self.call()  # it may have been held up
        if first >= LONG_CALL_S:
            return first
        return statistics.median([first, *self._samples(self._plan.block_s / 4)])

    def _samples(self, block_s: float) -> list[float]:
        """Return the wall times of calls that together take *block_s* and are as many as the plan asks for [s]."""
        samples: list[float] = []
        elapsed = 0.0
        while (len(samples) < self._plan.calls or elapsed < block_s) and len(samples) < MOST_CALLS:
            samples.append(self.call())
            elapsed += samples[-1]
        return samples


class LoadMeter:
    """Busy time of everyone else on the processors that we may use, from ``/proc/stat`` less our own processes.

    Time that the hypervisor gave to others (steal) counts as theirs.

    Args:
        pids: Processes at work besides this one; any that is gone is passed over.
        threads: Threads in use; the load is a share of them.
    """

    def __init__(self, pids: Iterable[int], threads: int) -> None:
        self._ours = [psutil.Process(pid) for pid in (os.getpid(), *pids) if psutil.pid_exists(pid)]
        self._threads = threads
        # Where we may not run, nobody takes anything from us but shared memory and caches, which is no load.
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        self._processors = [f"cpu{number}" for number in allowed]
        self.start()

    def start(self) -> None:
        """Begin a new window."""
        self._wall, self._before = time.perf_counter(), self._foreign_s()

    def read(self) -> float:
        """Return the foreign load since `start`, 0 or more; NaN where the system does not tell."""
        elapsed = time.perf_counter() - self._wall
        load = (self._foreign_s() - self._before) / (elapsed * self._threads)
        return load if math.isnan(load) else max(0.0, load)

    def _foreign_s(self) -> float:
        if not Path("/proc/stat").exists():
            return float("nan")
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        told = (line.split() for line in lines if line.startswith("cpu"))
        ticks = {name: list(map(int, fields)) for name, *fields in told}
        ours = [ticks[name] for name in self._processors if name in ticks] or [ticks["cpu"]]
        # user nice system idle iowait irq softirq steal (proc(5)); guest time is part of user.
        busy = sum(sum(fields[:3]) + sum(fields[5:8]) for fields in ours)
        return TICK_S * busy - sum(map(_cpu_s, self._ours))


def _is_steady(before_mhz: int | None, now_mhz: int | None) -> bool:
    """Return whether a clock stands still; one that is not told does."""
    return not before_mhz or now_mhz is None or abs(now_mhz / before_mhz - 1) <= SETTLED_CLOCK


def _cpu_s(process: psutil.Process) -> float:
    """Return the processor time of *process* [s]; 0 once it is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
