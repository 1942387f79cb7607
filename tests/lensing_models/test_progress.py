"""What a log shows of work that goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lensing_models.progress import PATIENCE_S, ProgressLine


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def test_a_line_is_printed_for_each_share(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("work", 10, every=0.25) as line:
        for _ in range(10):
            line.advance("on")

    assert lines(capsys) == [f"work: {done}/10 on" for done in (3, 6, 9, 10)]


def test_a_slow_piece_of_work_is_heard_of_in_time(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with ProgressLine("work", 1000) as line:
        for wait_s in (PATIENCE_S - 1, 2, PATIENCE_S - 1, 2):
            clock[0] += wait_s
            line.advance("on")

    assert lines(capsys) == ["work: 2/1000 on", "work: 4/1000 on"]


def test_what_is_said_counts_as_heard(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with ProgressLine("work", 1000) as line:
        clock[0] += PATIENCE_S - 1
        line.say("a word")
        clock[0] += 2
        line.advance("on")

    assert lines(capsys) == ["work: 0/1000 a word"]


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with ProgressLine("work", 2, silent=True) as line:
        clock[0] += 2 * PATIENCE_S
        line.advance("on")
        line.say("a word")

    assert lines(capsys) == []
