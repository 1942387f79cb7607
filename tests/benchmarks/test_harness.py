"""The anchor, to which every other time is divided, and what the harness and the scaling of images cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.backends.base import LocalSession
from bench.measure import BlockPlan, Clock
from bench.records import Scalar
from lensing_models.data.preprocess import scale_to_unit

pytestmark = pytest.mark.benchmark(min_rounds=20, max_time=0.6, warmup=True, warmup_iterations=5, disable_gc=True)


class NullSession(LocalSession):
    """Returns the same outputs at once, so that what is timed is the harness."""

    def __init__(self) -> None:
        self._outputs = torch.zeros(1, 3)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        return self._outputs

    def evidence(self) -> Mapping[str, Scalar]:
        return {"precision": "fp32", "threads": None}


def multiplication(device: str) -> Callable[[], object]:
    """Return a product of fixed matrices that owes nothing to this project or, on the CPU, to torch."""
    side = 512 if device == "cpu" else 4096
    first, second = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
    if device == "cpu":
        return lambda: first @ second
    here, there = (torch.from_numpy(matrix).to(device) for matrix in (first, second))

    def multiply() -> None:
        torch.matmul(here, there)
        torch.cuda.synchronize()

    return multiply


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_anchor(device: str, benchmark: BenchmarkFixture) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    benchmark(multiplication(device))


def test_clock_overhead(benchmark: BenchmarkFixture) -> None:
    plan = BlockPlan(block_s=0.1, calls=5, discards=3, warmup_s=0.1)
    clock = Clock(NullSession(), [torch.zeros(1, 1, 150, 150) for _ in range(8)], plan)

    overhead_s = benchmark(clock.call)

    assert overhead_s < 60  # not a demand on speed: that the clock gave a time in seconds at all


def test_preprocess_32_images(benchmark: BenchmarkFixture) -> None:
    counts = np.random.default_rng(0).poisson(50, (32, 1, 150, 150)).astype(np.float32)

    benchmark(scale_to_unit, counts)
