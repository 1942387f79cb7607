from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.environment import _frequency, describe_environment, fingerprint
from bench.json_lines import from_json, to_json
from bench.records import Environment

MACHINE = {"processor": "EPYC", "cores": 2, "memory_bytes": 24 * 2**30}


def test_threads_and_device_are_part_of_the_fingerprint() -> None:
    prints = {fingerprint(MACHINE, device, threads) for device in ("cpu", "cuda") for threads in (1, 2)}

    assert len(prints) == 4


def test_a_new_driver_is_the_same_machine() -> None:
    prints = {fingerprint({**MACHINE, "gpu": "H100", "driver": driver}, "cuda", 2) for driver in ("570", "580")}

    assert len(prints) == 1


def test_a_few_pages_of_memory_make_no_other_machine() -> None:
    fewer = {**MACHINE, "memory_bytes": 24 * 2**30 - 2**20}

    assert fingerprint(MACHINE, "cpu", 2) == fingerprint(fewer, "cpu", 2)


def test_another_clock_or_governor_is_the_same_machine() -> None:
    faster = {**MACHINE, "frequency_mhz": 3400, "max_frequency_mhz": 3900, "governor": "performance"}

    assert fingerprint(MACHINE, "cpu", 2) == fingerprint(faster, "cpu", 2)


def test_the_clock_of_the_processor_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scaling_governor").write_text("powersave\n")
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2593.9, min=800.0, max=3900.0))

    assert _frequency(tmp_path) == {"frequency_mhz": 2594, "max_frequency_mhz": 3900, "governor": "powersave"}


def test_what_is_not_told_of_the_clock_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)

    assert _frequency(tmp_path) == {}


def test_another_processor_is_another_machine() -> None:
    assert fingerprint(MACHINE, "cpu", 2) != fingerprint({**MACHINE, "processor": "Xeon"}, "cpu", 2)


def test_this_machine_is_described() -> None:
    here = describe_environment("cpu", 2)

    assert here.hardware["memory_bytes"] == psutil.virtual_memory().total
    assert here.hardware["logical_cores"] == os.cpu_count()
    assert {"python", "torch", "timm"} <= set(here.versions)
    assert from_json(Environment, to_json(here)) == here
    assert json.loads(to_json(here))["fingerprint"] == here.fingerprint
