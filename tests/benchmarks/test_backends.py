"""One inference of a small network through every backend, at batch 1 and 8.

All cells share one process, and by default one thread: a runtime then computes in the caller's
thread, and there is no pool left that could spin beside the next cell. `regression` holds the
measured spread of the whole suite.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.backends import known_backends
from bench.measure import prolong
from bench.plan import HALF_PRECISION, why_not
from bench.records import Case
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import COMPILING, lens_like_images
from tests.benchmarks import PLANT

pytestmark = pytest.mark.benchmark(min_rounds=20, max_time=0.6, warmup=True, warmup_iterations=5, disable_gc=True)

#: Input batches that the calls take in turn.
BUFFERS = 8

CELLS = [
    pytest.param(
        (name, device, precision, batch_size),
        id=f"{name}-{device}-{precision}-b{batch_size}",
        marks=[pytest.mark.gpu] if device == "cuda" else [],
    )
    for name, backend in known_backends().items()
    for device, precisions in backend.precisions.items()
    for precision in precisions
    if precision in ("fp32", HALF_PRECISION[device])
    for batch_size in (1, 8)
]


@pytest.fixture
def case(request: pytest.FixtureRequest, threads: int) -> Case:
    """Return the case of a cell, or skip with the reason that its row would carry."""
    backend, device, precision, batch_size = request.param
    chosen = Case(
        task="substructure",
        architecture="mobilenetv3_small",
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        device=device,
        threads=threads,
    )
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if reason := why_not(chosen, known_backends()):
        pytest.skip(reason)
    if backend in COMPILING and not request.config.getoption("benchmark_only"):
        pytest.skip("compiles for a minute; run on demand only, with the times")
    return chosen


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder of exported files for all cells, so that each is made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.mark.parametrize("case", CELLS, indirect=True)
def test_session(case: Case, workdir: Path, benchmark: BenchmarkFixture) -> None:
    torch.manual_seed(0)
    network = find_architecture(case.architecture).build(find_task(case.task))
    images = lens_like_images(BUFFERS * case.batch_size).to(case.device)
    batches = cycle(torch.split(images, case.batch_size))

    with known_backends()[case.backend].prepare(network, case, workdir) as session:

        def infer() -> None:
            session.infer(next(batches))
            session.synchronize()

        benchmark(partial(prolong, infer, float(os.environ[PLANT]) - 1) if PLANT in os.environ else infer)
        outputs = session.infer(next(batches))
        session.synchronize()
        assert outputs.shape == (case.batch_size, find_task(case.task).output_count)
        assert outputs.isfinite().all()
