"""The parts of a wall time: each instant is booked once."""

from __future__ import annotations

import pytest

from bench.timetable import Timetable, add_up


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    clock = Hand()
    monkeypatch.setattr("bench.timetable.stopwatch", lambda: clock)
    return clock


def test_what_is_booked_to_nothing_is_other(hand: Hand) -> None:
    timetable = Timetable()

    hand.now_s = 3.0
    with timetable.spend("build"):
        hand.now_s = 5.0
    hand.now_s = 6.0

    assert timetable.spent_s() == {"build": 2.0, "other": 4.0}


def test_work_side_by_side_counts_as_wall_time(hand: Hand) -> None:
    timetable = Timetable()

    with timetable.spend("build"):
        hand.now_s = 2.0
        with timetable.spend("quality"), timetable.spend("quality"):  # of two other threads
            hand.now_s = 8.0

    assert timetable.spent_s() == pytest.approx({"build": 2.0 + 6.0 / 3, "quality": 6.0 * 2 / 3})


def test_a_part_that_fails_is_booked(hand: Hand) -> None:
    timetable = Timetable()

    def fail() -> None:
        with timetable.spend("build"):
            hand.now_s = 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert timetable.spent_s() == {"build": 2.0}


def test_no_more_is_moved_than_there_is(hand: Hand) -> None:
    timetable = Timetable()
    with timetable.spend("measuring"):
        hand.now_s = 5.0

    timetable.move("measuring", "rejected", 2.0)
    assert timetable.spent_s() == {"measuring": 3.0, "rejected": 2.0}

    timetable.move("measuring", "rejected", 9.0)
    assert timetable.spent_s() == {"rejected": 5.0}


def test_a_resumed_run_adds_to_the_first_attempt() -> None:
    whole = add_up({"data": 1.0, "other": 2.0}, {"report": 3.0, "scenario": 4.0, "other": 5.0})

    assert list(whole.items()) == [("data", 1.0), ("scenario", 4.0), ("report", 3.0), ("other", 7.0)]
