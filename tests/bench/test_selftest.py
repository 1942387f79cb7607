"""The self-test: right where the harness is right, and loud where it is not."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.control import CONTROL, TRUTHS
from bench.control_timing import Verdicts, compare_networks, control_job, time_controls
from bench.interleave import Limits
from bench.job import Job
from bench.process import Oversight, Worker
from bench.selftest import SelfTest, are_passed, render, run_selftest
from bench.statistic import Interval
from lensing_models.data.simulate import simulate_dataset
from lensing_models.preset import Split
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import make_case

GOOD = SelfTest(
    overhead_s=3e-7,
    bias={"wait_1ms": 1e-3, "wait_5ms": -2e-4},
    same=Interval(point=1.0, low=0.999, high=1.001),
    slowdown=Interval(point=1.05, low=1.049, high=1.051),
    exact=True,
    fault=True,
    contended=0.0,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("selftest")
    task = find_task("substructure")
    store = simulate_dataset(task, Split(train=1, validation=1, test=16), folder / "data")
    return control_job(
        Job(
            case=make_case(threads=1),
            checkpoint=None,
            store=store.folder,
            workdir=folder / "not" / "there",
            reference=None,
            outputs=folder / "outputs.npy",
            plan=None,  # type: ignore[arg-type]  # control_job gives its own
        ),
        "null",
    )


def test_what_is_right_is_not_complained_of() -> None:
    assert GOOD.complaints() == []
    assert "complaint" not in render(GOOD)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"overhead_s": 2e-6}, "does nothing takes 2.00 us"),
        ({"bias": {"wait_1ms": -0.02}}, "-2.0% wrong"),
        ({"slowdown": Interval(point=1.04, low=0.99, high=1.09)}, "slowdown of 5 % was not seen"),
        ({"exact": False}, "differs from itself"),
        ({"fault": False}, "not caught"),
    ],
)
def test_each_thing_that_is_wrong_is_complained_of(change: dict[str, object], complaint: str) -> None:
    complaints = dataclasses.replace(GOOD, **change).complaints()

    assert len(complaints) == 1
    assert complaint in complaints[0]


def test_times_of_a_disturbed_machine_are_not_the_harness_fault() -> None:
    disturbed = dataclasses.replace(GOOD, bias={"wait_1ms": 0.5}, contended=0.9)

    assert disturbed.complaints() == []
    assert "disturbed" in render(disturbed)
    assert dataclasses.replace(disturbed, fault=False).complaints() == ["a faulty output was not caught"]


def test_a_wait_takes_at_least_its_time(job: Job) -> None:
    limits = Limits(blocks=2, most_blocks=2, case_s=5.0, target_ci=1e-9)

    timings = time_controls(job, ["wait_1ms", "wait_5ms"], limits)

    samples = {name: [s for block in timing.blocks for s in block.samples_s] for name, timing in timings.items()}
    assert all(min(samples[name]) >= TRUTHS[name].wait_s for name in samples)


def test_a_network_passes_and_a_faulty_one_does_not(job: Job) -> None:
    assert are_passed(job, ("network", "network_faulty")) == [True, False]


def test_the_fault_is_three_tolerances(job: Job) -> None:
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    images = torch.rand(1, 1, 150, 150)
    with torch.inference_mode():
        true = network(images)

    session = CONTROL.prepare(network, make_case(backend="control", variant="network_faulty", batch_size=1), Path())
    with torch.inference_mode():
        outputs = session.infer(images)

    assert ((outputs - true).abs().max() / true.square().mean().sqrt()).item() == pytest.approx(3e-4, rel=1e-2)


def test_the_whole_self_test_runs(job: Job) -> None:
    found = run_selftest(job)

    assert found.exact
    assert found.fault
    assert 0 < found.overhead_s < 1e-3
    assert set(found.bias) == {"wait_1ms", "wait_5ms", "wait_5ms_again", "wait_5ms_slow", "wait_20ms"}


def test_a_comparison_is_counted_by_where_its_interval_lies() -> None:
    verdicts = Verdicts()

    for low, point, high in ((0.99, 1.0, 1.01), (1.5, 2.0, 2.5), (0.4, 0.5, 0.6), (math.nan, 1.0, math.nan)):
        verdicts.add(Interval(point=point, low=low, high=high))
    verdicts.add(Interval(point=math.nan, low=math.nan, high=math.nan))

    assert verdicts == Verdicts(asked=5, called=2, lost=2, ratios=[1.0, 2.0, 0.5, 1.0])
    assert str(verdicts) == "called different 2 of 5 times, 2 without an interval; mean ratio 1.0000"


def test_each_comparison_has_processes_of_its_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    class Watched(Worker):
        def __init__(self, job: Job, oversight: Oversight | None = None) -> None:
            super().__init__(job, oversight)
            begun.append(f"{job.case.variant} {self.pid}")

    monkeypatch.setattr("bench.control_timing.Worker", Watched)
    monkeypatch.setattr("bench.control_timing.BLOCKS_OF_PROCESS", 2)
    # What other work spoils is made up for, by another process if need be.
    monkeypatch.setattr("bench.interleave.LoadMeter.read", lambda meter: 0.0)

    found = compare_networks(job, repeats=2, processes=2)

    names = Counter(name.split()[0] for name in begun)
    assert len(set(begun)) == len(begun)
    # Twice with itself, once with each that was slowed.
    assert names == {"network": 8, "network_again": 4, "network_slow_2": 2, "network_slow_5": 2}
    assert [verdict.asked for verdict in found.values()] == [2, 1, 1]
