"""What the benchmarks share: timed on demand only, and on every core alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.plan import resolve_threads

#: Every core that this process may use, for every runtime alike.
THREADS = resolve_threads(None)


@pytest.fixture
def benchmark(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> BenchmarkFixture:
    """Return the plugin's fixture; without ``--benchmark-only`` it runs the body once, untimed."""
    benchmark.disabled = not request.config.getoption("benchmark_only")
    return benchmark


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    """Give torch every core, and put its thread count back."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)
