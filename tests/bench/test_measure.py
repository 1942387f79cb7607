from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import time
from pathlib import Path

import psutil
import pytest
import torch

from bench.backends.base import LocalSession
from bench.measure import LONG_CALL_S, MOST_CALLS, BlockPlan, Clock, LoadMeter

PLAN = BlockPlan(block_s=0.02, calls=5, discards=3, warmup_s=0.5)


class Waiting(LocalSession):
    """A session that waits for the times it is given, then for the last of them, and counts its calls."""

    def __init__(self, *delays_s: float) -> None:
        self.delays, self.seen = list(delays_s), []

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        self.seen.append(int(images[0]))
        end = time.perf_counter() + self.delays[min(len(self.seen), len(self.delays)) - 1]
        while time.perf_counter() < end:
            pass
        return images

    def evidence(self) -> dict[str, str]:
        return {}


def clock(session: Waiting, buffers: int = 8) -> Clock:
    return Clock(session, [torch.tensor([number]) for number in range(buffers)], PLAN)


def test_a_sample_is_never_shorter_than_the_delay() -> None:
    samples = clock(Waiting(0.004)).block()

    # An upper bound would be a timed assertion on a machine that others use too.
    assert min(samples) >= 0.004


def test_a_session_that_takes_no_time_is_not_called_for_ever() -> None:
    plan = dataclasses.replace(PLAN, block_s=10.0)

    assert len(Clock(Waiting(0.0), [torch.zeros(1)], plan).block()) == MOST_CALLS


def test_a_block_has_enough_calls_and_lasts_long_enough() -> None:
    slow, fast = clock(Waiting(0.01)).block(), clock(Waiting(1e-5)).block()

    assert len(slow) >= PLAN.calls
    assert sum(fast) >= PLAN.block_s


def test_discarded_calls_are_made_but_not_timed() -> None:
    session = Waiting(0.01)

    samples = clock(session).block()

    assert len(session.seen) == len(samples) + PLAN.discards


def test_a_session_of_long_calls_has_blocks_of_one() -> None:
    session = Waiting(LONG_CALL_S)
    timer = clock(session)
    timer.warm_up()
    warmed = len(session.seen)

    samples = timer.block()

    assert warmed == 2
    assert len(samples) == len(session.seen) - warmed == 1


def test_a_first_call_that_was_held_up_makes_no_long_session() -> None:
    timer = clock(Waiting(LONG_CALL_S, 0.01))
    timer.warm_up()

    assert len(timer.block()) >= PLAN.calls


def test_one_slow_call_does_not_change_what_a_block_is() -> None:
    session = Waiting(*[0.01] * 80, LONG_CALL_S, 0.01)
    timer = clock(session)
    timer.warm_up()
    while len(session.seen) < 80:
        timer.call()

    samples = timer.block()

    assert len(samples) >= PLAN.calls
    assert max(samples) < LONG_CALL_S  # the slow call was the first of the discarded ones


def test_the_inputs_take_turns() -> None:
    session = Waiting(0.01)

    clock(session, buffers=3).block()

    assert session.seen == [number % 3 for number in range(len(session.seen))]


def test_the_digest_of_the_inputs_is_of_what_is_in_them_now() -> None:
    buffers = [torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)]
    timed = Clock(Waiting(0.0), buffers, PLAN)
    before = timed.input_digest()
    assert timed.input_digest() == before

    buffers[1][0, 0, 1, 1] = 2.0  # as a runtime that writes into the images would

    assert timed.input_digest() != before


def test_a_session_needs_an_input() -> None:
    with pytest.raises(ValueError, match="no input"):
        Clock(Waiting(0.0), [], PLAN)


def test_warm_up_gives_up_in_time() -> None:
    growing = [0.01 * 1.5**number for number in range(40)]

    blocks, settled = clock(Waiting(*growing)).warm_up()

    assert not settled
    assert blocks >= 1


def test_warm_up_waits_for_the_clock_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([345, 1200, 1740, 1965, 1980, 1980])
    timer = clock(Waiting(0.0))
    monkeypatch.setattr(timer, "_short_median", lambda: 0.01)

    # 1965 to 1980 is the first step below 2 %.
    assert timer.warm_up(lambda: next(clocks)) == (5, True)


def test_a_clock_that_is_not_told_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = clock(Waiting(0.0))
    monkeypatch.setattr(timer, "_short_median", lambda: 0.01)

    assert timer.warm_up(lambda: None) == (2, True)


def test_a_clock_that_never_settles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = itertools.cycle([1000, 1980])
    timer = Clock(Waiting(0.0), [torch.zeros(1)], dataclasses.replace(PLAN, warmup_s=0.01))
    monkeypatch.setattr(timer, "_short_median", lambda: 0.01)

    blocks, settled = timer.warm_up(lambda: next(clocks))

    assert blocks >= 2
    assert settled  # the times did; what the clock moves shows in the blocks


def test_a_window_of_calls_is_as_long_as_asked_for() -> None:
    session = Waiting(0.002)

    calls, elapsed_s = clock(session).run_for(0.02)

    assert calls == len(session.seen)
    assert elapsed_s >= max(0.02, 0.002 * calls)


needs_proc = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell its load")


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@needs_proc
def test_a_busy_stranger_is_seen_and_a_busy_worker_is_not() -> None:
    process = multiprocessing.get_context("fork").Process(target=_spin, args=(30.0,))
    process.start()
    used_s = psutil.Process(process.pid).cpu_times
    stranger, worker, before = LoadMeter([], threads=1), LoadMeter([process.pid or 0], threads=1), used_s().user
    time.sleep(1.5)
    as_stranger, as_worker, after = stranger.read(), worker.read(), used_s().user
    process.kill()
    process.join()

    # The two meters differ by what the process used, to the tick of 10 ms that the system counts in.
    assert as_stranger - as_worker == pytest.approx((after - before) / 1.5, abs=0.1)
    assert after > before


@pytest.mark.parametrize(("allowed", "load"), [({0}, 0.0), ({0, 1}, 0.8), ({7}, 0.8)])
def test_the_load_is_that_of_the_processors_that_we_may_use(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], load: float
) -> None:
    """The last is of a system that does not tell of the one that we may use."""
    busy = iter([100, 180])  # ticks of the second one

    def read_text(path: Path, encoding: str) -> str:
        ticks = next(busy)
        return f"cpu {ticks} 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 {ticks} 0 0 0 0 0 0 0 0 0\nintr 7\n"

    seconds = iter([0.0, 1.0])
    monkeypatch.setattr("bench.measure.os.sched_getaffinity", lambda pid: allowed)
    monkeypatch.setattr("bench.measure._cpu_s", lambda process: 0.0)
    monkeypatch.setattr("bench.measure.time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr("bench.measure.TICK_S", 0.01)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", read_text)

    assert LoadMeter([], threads=1).read() == pytest.approx(load)


def test_the_load_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)

    assert math.isnan(LoadMeter([], threads=1).read())
