"""What the benchmarks share: timed on demand only, the same threads for all, the load noted."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measure import LoadMeter
from tests.benchmarks import THREADS


@pytest.fixture
def benchmark(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> BenchmarkFixture:
    """Return the plugin's fixture; without ``--benchmark-only`` it runs the body once, untimed."""
    benchmark.disabled = not request.config.getoption("benchmark_only")
    return benchmark


@pytest.fixture
def threads() -> Iterator[int]:
    """Return the threads that every runtime gets; torch has them until the test ends."""
    chosen = int(os.environ.get(THREADS, "1"))
    before = torch.get_num_threads()
    torch.set_num_threads(chosen)
    yield chosen
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def foreign_load(benchmark: BenchmarkFixture, threads: int) -> Iterator[None]:
    """Keep beside each timing how busy other processes were meanwhile."""
    meter = LoadMeter([], threads)
    yield
    benchmark.extra_info["foreign_load"] = meter.read()
