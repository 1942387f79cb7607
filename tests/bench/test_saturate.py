from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest
import torch

from bench.backends.base import LocalSession
from bench.control import TRUTHS, ControlSession, Truth
from bench.measure import LONG_CALL_S, BlockPlan, rest
from bench.saturate import Saturation, Window
from tests.bench.conftest import make_case

PLAN = BlockPlan(block_s=0.1, calls=3, discards=1, warmup_s=0.3)
IMAGES = [torch.zeros(1)]


class Watched(ControlSession):
    """A control that counts its calls by slot and how many were in flight at once."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth, None, make_case())
        self.most, self.calls, self._now, self._lock = 0, {0: 0, 1: 0}, 0, threading.Lock()

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        with self._lock:
            self._now += 1
            self.calls[slot] += 1
            self.most = max(self.most, self._now)
        outputs = super().infer(images, slot)
        with self._lock:
            self._now -= 1
        return outputs


def rate(session: LocalSession, plan: BlockPlan = PLAN) -> float:
    with Saturation(session, IMAGES, plan) as saturation:
        samples = saturation.block()
    return len(samples) / sum(samples)


def test_two_requests_are_in_flight() -> None:
    session = Watched(TRUTHS["rest_20ms"])

    rate(session)

    assert session.most == 2


def test_a_session_that_rests_gives_no_more_than_two_a_rest() -> None:
    # A rest is never shorter than it should be, so the bound holds on any machine.
    assert rate(ControlSession(TRUTHS["rest_20ms"], None, make_case())) <= 2 / 20e-3


def test_a_session_of_one_call_at_a_time_gives_no_more_than_one_a_rest() -> None:
    assert rate(ControlSession(TRUTHS["rest_20ms_alone"], None, make_case())) <= 1 / 20e-3


def test_overlapping_calls_give_more_than_calls_in_turn() -> None:
    overlapping = rate(ControlSession(TRUTHS["rest_20ms"], None, make_case()))
    in_turn = rate(ControlSession(TRUTHS["rest_20ms_alone"], None, make_case()))

    assert overlapping > in_turn


def test_both_slots_warm_up_and_are_called() -> None:
    session = Watched(Truth(rest_s=1e-3))

    with Saturation(session, IMAGES, PLAN) as saturation:
        saturation.warm_up()
        saturation.block()

    assert min(session.calls.values()) >= 3


def test_long_calls_are_made_once_a_slot_and_counted_both() -> None:
    session = Watched(Truth(rest_s=LONG_CALL_S))

    with Saturation(session, IMAGES, PLAN) as saturation:
        warmed = saturation.warm_up()
        before = dict(session.calls)
        samples = saturation.block()

    assert warmed == (1, True)
    assert [session.calls[slot] - before[slot] for slot in (0, 1)] == [1, 1]
    assert len(samples) == 2
    assert sum(samples) >= LONG_CALL_S


def test_a_first_call_that_was_held_up_makes_no_long_session() -> None:
    class HeldUp(ControlSession):
        is_first = True

        def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
            if self.is_first:
                self.is_first = False
                rest(LONG_CALL_S)
            return super().infer(images, slot)

    with Saturation(HeldUp(Truth(rest_s=1e-3), None, make_case()), IMAGES, PLAN) as saturation:
        saturation.warm_up()
        samples = saturation.block()

    assert len(samples) >= 2 * PLAN.calls


def loaded_openmp() -> ctypes.CDLL | None:
    """Return the OpenMP that torch has loaded; None where the system does not tell.

    Other packages (scikit-learn) bring an OpenMP of their own, whose numbers torch neither sets nor uses.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    ours = [line.split()[-1] for line in lines if Path(torch.__file__).parent.as_posix() in line]
    names = [name for name in ours if Path(name).name.startswith(("libgomp", "libiomp", "libomp"))]
    return ctypes.CDLL(names[0]) if names else None


def test_the_pool_of_each_caller_has_the_threads_that_torch_was_told() -> None:
    openmp = loaded_openmp()
    if openmp is None or openmp.omp_get_num_procs() < 2:
        pytest.skip("no OpenMP to ask, or a single core")
    found: set[int] = set()

    class Asking(ControlSession):
        """Asks OpenMP itself: torch would pass the number on when it is asked."""

        def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
            found.add(openmp.omp_get_max_threads())
            return super().infer(images, slot)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Saturation(Asking(Truth(rest_s=1e-3), None, make_case()), IMAGES, PLAN) as saturation:
            saturation.block()
    finally:
        torch.set_num_threads(before)

    assert found == {1}


def test_a_slot_that_fails_ends_the_block_and_is_told() -> None:
    class Failing(LocalSession):
        def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
            rest(1e-3)
            if slot == 1:
                raise RuntimeError("no room for a second request")
            return images

        def evidence(self) -> dict[str, str]:
            return {}

    with pytest.raises(RuntimeError, match="no room"):
        rate(Failing())


def window(times: list[tuple[float, int]], **changes: float) -> Window:
    """Return a window that was told of completions of slots at *times* until it was over."""
    clock = iter(time for time, _ in times)
    facts = {"slots": 2, "discards": 1, "block_s": 3.0, "calls": 2, "once": False, **changes}
    made = Window(elapsed=lambda: next(clock), **facts)  # type: ignore[arg-type]  # a test names its own fields
    for _, slot in times:
        if not made.note(slot):
            break
    return made


@pytest.mark.parametrize("lag", [0.0, 0.001, 0.3, 0.5, 0.999])
def test_slots_of_one_second_a_call_make_two_a_second_however_they_are_shifted(lag: float) -> None:
    times = sorted([(float(turn), 0) for turn in range(1, 20)] + [(turn + lag, 1) for turn in range(1, 20)])

    samples = window(times).samples()

    assert len(samples) / sum(samples) == pytest.approx(2.0)


def test_a_starved_slot_leaves_the_rate_of_the_other() -> None:
    # One call at a time, 1 s each, and nearly always the first slot's turn.
    times = [(float(turn), 1 if turn in (2, 9, 16) else 0) for turn in range(1, 20)]

    samples = window(times).samples()

    assert len(samples) / sum(samples) == pytest.approx(1.0)


def test_completions_before_every_slot_was_at_work_do_not_count() -> None:
    times = [(0.1, 0), (0.2, 0), (5.0, 1), (6.0, 0), (7.0, 1), (8.0, 0), (9.0, 1)]

    samples = window(times).samples()

    assert samples == pytest.approx((1.0, 1.0, 1.0, 1.0))
