from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ceiling import (
    BLOCK,
    PRECISIONS,
    Convolution,
    Copy,
    Product,
    Size,
    best_rate,
    measure_ceiling,
    measure_ceilings,
    size_for,
)
from bench.job import Job
from lensing_models.data.simulate import simulate_dataset
from lensing_models.preset import Split
from lensing_models.registry import find_task
from tests.bench.conftest import make_case

SMALL = Size(sides=(64, 128), images=1, copied_bytes=2**20)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("ceiling")
    store = simulate_dataset(find_task("substructure"), Split(train=1, validation=1, test=2), folder / "data")
    return Job(
        case=make_case(threads=1),
        checkpoint=None,
        store=store.folder,
        workdir=folder,
        reference=None,
        outputs=folder / "outputs.npy",
        plan=BLOCK,
    )


def test_a_process_of_its_own_finds_every_ceiling(job: Job) -> None:
    ceilings = measure_ceilings(job, SMALL)

    rates = [*ceilings.matmul_flop_s.values(), ceilings.copy_b_s or math.nan]
    assert tuple(ceilings.matmul_flop_s) == PRECISIONS["cpu"]
    # No thread does a million million operations a second times a hundred, and none so few.
    assert all(1e5 < rate < 1e14 for rate in rates)
    assert not ceilings.failures


def test_what_cannot_be_measured_is_named_with_its_reason(job: Job) -> None:
    strange = dataclasses.replace(job, store=Path("nowhere"))

    ceilings = measure_ceilings(strange, SMALL)

    assert not ceilings.matmul_flop_s
    assert ceilings.copy_b_s is None
    assert set(ceilings.failures) == {*PRECISIONS["cpu"], "copy"}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)]
)
def test_a_product_is_one_of_its_precision_and_is_right(precision: str, dtype: torch.dtype) -> None:
    product = Product(precision, "cpu", 64)

    found = product.infer(product.left)

    assert product.left.dtype == dtype
    expected = product.left.double() @ product.right.double()
    # bf16 keeps 8 bits of a sum of 64 products, whose size is about 8.
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=0.1 if precision == "bf16" else 1e-4)


def test_a_product_of_squares_has_two_operations_a_multiply_add() -> None:
    assert Product("fp32", "cpu", 64).work == 2 * 64**3


@pytest.mark.parametrize("precision", PRECISIONS["cpu"])
def test_a_convolution_has_the_operations_that_are_counted_and_is_right(precision: str) -> None:
    convolution = Convolution(precision, 1)

    with FlopCounterMode(display=False) as counter:
        found = convolution.infer(convolution.left)

    assert convolution.work == counter.get_total_flops()
    expected = torch.nn.functional.conv2d(convolution.left.double(), convolution.weights.double(), padding=1)
    # Sums of 2304 products, whose size is about 48.
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=0.5 if precision == "bf16" else 1e-3)


def test_the_faster_of_product_and_convolution_counts_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {Product: 1.0, Convolution: 3.0, Copy: 2.0}
    monkeypatch.setattr("bench.ceiling.best_rate", lambda session: rates[type(session)])

    assert measure_ceiling("fp32", "cpu", 1, SMALL) == 3.0
    assert measure_ceiling("fp32", "cpu", 1, dataclasses.replace(SMALL, images=0)) == 1.0


def test_a_copy_reads_and_writes_its_bytes() -> None:
    copy = Copy("cpu", 4096)

    torch.testing.assert_close(copy.infer(copy.left), copy.left)
    assert copy.work == 2 * 4096


def test_the_best_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(9.0, 1.0, 9.0), (2.0, 2.0, 2.0), (4.0, 3.0, 3.0), (5.0,)])
    monkeypatch.setattr("bench.ceiling.Clock.block", lambda clock: next(times))

    assert best_rate(Copy("cpu", 4096)) == 2 * 4096 / 2.0


@pytest.mark.parametrize(("device", "threads", "largest"), [("cpu", 2, 2048), ("cpu", 64, 4096), ("cuda", 2, 8192)])
def test_a_larger_device_gets_more_work(device: str, threads: int, largest: int) -> None:
    assert max(size_for(device, threads).sides) == largest
