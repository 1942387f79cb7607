"""One inference of a small network through every backend, precision and device, and the anchor."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.backends import known_backends
from bench.plan import why_not
from bench.records import Case
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import lens_like_images
from tests.benchmarks.conftest import THREADS

pytestmark = pytest.mark.benchmark(min_rounds=20, max_time=1.0, warmup=True, warmup_iterations=5, disable_gc=True)

#: Input batches that the calls take in turn.
BUFFERS = 8

CELLS = [
    pytest.param(
        name,
        device,
        precision,
        batch_size,
        id=f"{name}-{device}-{precision}-b{batch_size}",
        marks=[pytest.mark.gpu] if device == "cuda" else [],
    )
    for name, backend in known_backends().items()
    for device, precisions in backend.precisions.items()
    for precision in precisions
    if precision in ("fp32", "bf16")
    for batch_size in (1, 8)
]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder of exported files for all cells, so that each is made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.mark.parametrize(("backend", "device", "precision", "batch_size"), CELLS)
def test_session(
    backend: str, device: str, precision: str, batch_size: int, workdir: Path, benchmark: BenchmarkFixture
) -> None:
    case = Case(
        task="substructure",
        architecture="mobilenetv3_small",
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        device=device,
        threads=THREADS,
    )
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if reason := why_not(case, known_backends()):
        pytest.skip(reason)
    images = lens_like_images(BUFFERS * batch_size).to(device)
    torch.manual_seed(0)
    network = find_architecture(case.architecture).build(find_task(case.task))

    with known_backends()[backend].prepare(network, case, workdir) as session:
        batches = cycle([part.contiguous() for part in images.split(batch_size)])

        def infer() -> None:
            session.infer(next(batches))
            session.synchronize()

        benchmark(infer)


def test_anchor_matmul(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 512, 512), dtype=np.float32)

    benchmark(np.matmul, a, b)


def test_anchor_conv(benchmark: BenchmarkFixture) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 64, 38, 38), torch.randn(64, 64, 3, 3)

    benchmark(torch.nn.functional.conv2d, a, b, padding=1)
