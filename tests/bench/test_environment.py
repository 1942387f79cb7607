from __future__ import annotations

import json
import os

import psutil

from bench.environment import describe_environment, fingerprint
from bench.records import Environment, from_json, to_json

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


def test_another_processor_is_another_machine() -> None:
    assert fingerprint(MACHINE, "cpu", 2) != fingerprint({**MACHINE, "processor": "Xeon"}, "cpu", 2)


def test_this_machine_is_described() -> None:
    here = describe_environment("cpu", 2)

    assert here.hardware["memory_bytes"] == psutil.virtual_memory().total
    assert here.hardware["logical_cores"] == os.cpu_count()
    assert {"python", "torch", "timm"} <= set(here.versions)
    assert from_json(Environment, to_json(here)) == here
    assert json.loads(to_json(here))["fingerprint"] == here.fingerprint
