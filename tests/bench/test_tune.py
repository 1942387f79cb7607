"""The search for settings, on a planted backend whose times are known."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.backends import PLUGINS
from bench.json_lines import read_lines
from bench.knob import Tuning
from bench.tune import choices
from lensing_models.data.simulate import simulate_dataset
from lensing_models.preset import Split
from lensing_models.registry import find_task
from tests.bench.conftest import make_case

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "data"
    return simulate_dataset(find_task("substructure"), Split(train=1, validation=1, test=4), folder).folder


def search(store: Path, *, foreign_limit: float, plugins: str = "tests.bench.planted.tunable") -> Tuning | str:
    """Return what the search finds if blocks of more than *foreign_limit* foreign load do not count; or its error."""
    out = store.parent / f"{foreign_limit}-{bool(plugins)}.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.tune_planted", str(store), str(foreign_limit), str(out)],
        env={**os.environ, PLUGINS: plugins, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return next(read_lines(out, Tuning)) if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def tuning(store: Path) -> Tuning:
    found = search(store, foreign_limit=math.inf)
    assert isinstance(found, Tuning), found
    return found


def test_the_fastest_setting_is_found(tuning: Tuning) -> None:
    assert tuning.settings == {"wait_ms": 10}


def test_every_try_is_kept_with_its_time_beside_the_best_so_far(tuning: Tuning) -> None:
    slower, faster = tuning.tries[:2]

    assert (slower.settings, slower.is_taken) == ({"wait_ms": 50}, False)
    assert (faster.settings, faster.is_taken) == ({"wait_ms": 10}, True)
    assert slower.ratio > 1 > faster.ratio


def test_a_setting_that_fails_is_a_try_without_a_time(tuning: Tuning) -> None:
    (broken,) = tuning.tries[2:]

    assert broken.settings == {"wait_ms": 10, "broken": True}
    assert "the planted setting is broken" in broken.failure
    assert math.isnan(broken.ratio)
    assert not broken.is_taken


def test_tries_that_other_work_spoilt_are_no_result(store: Path) -> None:
    spoilt = search(store, foreign_limit=-1.0)

    assert isinstance(spoilt, Tuning), spoilt
    assert spoilt.settings == {}
    assert "other people's work" in spoilt.tries[0].failure
    assert not spoilt.is_timed


def test_a_case_that_fails_with_its_defaults_has_no_settings(store: Path) -> None:
    error = search(store, foreign_limit=math.inf, plugins="")

    assert "planted_tunable" in str(error)


def test_what_can_be_chosen_depends_on_what_was() -> None:
    case = make_case(backend="openvino", batch_size=4, threads=4)

    assert choices(case, "threads", {}) == (2, 1)
    assert choices(case, "streams", {}) == (2, 4)
    assert choices(case, "streams", {"threads": 2}) == (2,)
    assert choices(case, "streams", {"threads": 1}) == ()
