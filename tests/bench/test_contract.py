"""What every backend promises (`bench.backends.base`), on random weights with tame statistics.

The cells of backend, device and precision run the smallest network, those of a backend that compiles for
long a tiny one; every network but the largest goes through every backend that exports it, on every task.
That one is `slow`, but for one export, and so is what compiles for long.
A run's `parity_error` column says the same of fitted networks.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.backends import known_backends
from bench.backends.base import Session
from bench.knob import apply_settings, knobs_of
from bench.parity import TOLERANCE, compare, compute_reference, run_through
from bench.plan import why_not
from bench.records import Case
from lensing_models.network import LensNetwork
from lensing_models.registry import known_architectures
from lensing_models.tasks import known_tasks
from tests.bench.conftest import COMPILING, TINY, lens_like_images, make_case

Build = Callable[[str, str], LensNetwork]

CELLS = [
    pytest.param(backend.name, device, precision, marks=[pytest.mark.gpu] if device == "cuda" else [])
    for backend in known_backends().values()
    for device, precisions in backend.precisions.items()
    for precision in precisions
]
#: Largest parity error of a 16- or 8-bit backbone: bf16 keeps 8 bits, 4e-3 a rounding, over some 50 layers;
#: int8 has steps of 4e-3 of a range.
REDUCED = 0.2


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """Return the case of a cell, or skip with the reason that its row would carry."""
    backend, device, precision = request.param
    architecture = TINY if backend in COMPILING else "mobilenetv3_small"
    chosen = make_case(backend=backend, architecture=architecture, device=device, precision=precision)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if reason := why_not(chosen, known_backends()):
        pytest.skip(reason)
    return chosen


def every_cell(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("case", [cell_values(cell) for cell in CELLS], indirect=True)(test)


def cell_values(cell: object) -> object:
    values, marks = cell.values, cell.marks  # type: ignore[attr-defined]  # a ParameterSet
    return pytest.param(values, marks=marks, id="-".join(values))


def prepare(build: Build, case: Case, workdir: Path, slots: int = 1) -> Session:
    network = build(case.architecture, case.task)
    return known_backends()[case.backend].prepare(network, case, workdir, slots)


def check_parity(case: Case, build: Build, workdir: Path) -> None:
    if reason := why_not(case, known_backends()):
        pytest.skip(reason)
    images = lens_like_images(2, case.task)
    reference = compute_reference(build(case.architecture, case.task), images, case.device)

    with prepare(build, case, workdir) as session:
        parity = compare(run_through(session, images, case), reference, "fp32")

    assert parity.passed


@every_cell
def test_outputs_are_those_of_the_reference(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(6)
    reference = compute_reference(build(case.architecture, case.task), images, case.device)

    with prepare(build, case, workdir) as session:
        parity = compare(run_through(session, images, case), reference, case.precision)

    assert parity.error <= (TOLERANCE if case.precision == "fp32" else REDUCED)


@every_cell
def test_outputs_do_not_depend_on_the_batch(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(5)
    one = replace(case, batch_size=1)

    with prepare(build, case, workdir) as session:
        in_pairs = run_through(session, images, case)
    with prepare(build, one, workdir) as session:
        alone = run_through(session, images, one)

    assert compare(in_pairs, alone, "bf16").error <= (TOLERANCE if case.precision == "fp32" else REDUCED)


@every_cell
def test_two_slots_hold_two_requests(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(4).to(case.device)

    with prepare(build, case, workdir, slots=2) as session:
        first = session.infer(images[:2], slot=0)
        second = session.infer(images[2:], slot=1)
        session.synchronize()
        together = torch.cat([first, second]).cpu().numpy().copy()
        apart = run_through(session, images.cpu(), case)

    assert compare(together, apart, "bf16").error <= 1e-5


@pytest.fixture
def own_threads() -> Iterator[None]:
    """Give torch back the threads that it had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@every_cell
def test_every_setting_gives_the_same_outputs_in_every_slot(
    case: Case, build: Build, workdir: Path, own_threads: None
) -> None:
    images = lens_like_images(4)
    backend, asked = known_backends()[case.backend], replace(case, threads=2)
    alternatives = [{name: value} for name, values in knobs_of(asked, backend).items() for value in values[1:]]
    with prepare(build, case, workdir) as session:
        plain = run_through(session, images, case)

    for settings in alternatives:
        chosen, changed = apply_settings(backend, asked, settings)
        network = build(case.architecture, case.task)
        torch.set_num_threads(changed.threads)
        with chosen.prepare(network, changed, workdir, slots=2) as session:
            answers = [run_through(session, images, changed, slot) for slot in (0, 1)]
            evidence = session.evidence()

        tolerance = TOLERANCE if case.precision == "fp32" else REDUCED
        assert max(compare(answer, plain, "bf16").error for answer in answers) <= tolerance, settings
        assert evidence.get("precision") == case.precision, settings
        read_back = {name: evidence.get(name) for name in settings}
        # Two callers of ONNX Runtime are two threads that compute, whatever its pool.
        callers = {**settings, "threads": 2} if backend.name == "onnx" and settings.get("threads") == 1 else settings
        assert read_back in (settings, callers) or backend.name == "trt"


@every_cell
def test_two_threads_drive_two_slots_at_once(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(4).to(case.device)
    both_ready = threading.Barrier(2)

    def answers(slot: int) -> list[torch.Tensor]:
        mine, kept = images[2 * slot : 2 * slot + 2], []
        both_ready.wait(60)
        for _ in range(8):
            outputs = session.infer(mine, slot)
            session.synchronize(slot)
            kept.append(outputs.cpu().clone())
        return kept

    with prepare(build, case, workdir, slots=2) as session:
        apart = run_through(session, images.cpu(), case)
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(answers, (0, 1))

    together = torch.cat([torch.cat(pair) for pair in zip(first, second, strict=True)]).numpy()
    assert compare(together, np.tile(apart, (8, 1)), "bf16").error <= 1e-5


@every_cell
def test_images_are_left_as_they_were(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(2).to(case.device)
    before = images.clone()

    with prepare(build, case, workdir) as session:
        session.infer(images)
        session.synchronize()

    assert torch.equal(images, before)


@every_cell
def test_evidence_names_precision_and_threads(case: Case, build: Build, workdir: Path) -> None:
    images = lens_like_images(2).to(case.device)

    with prepare(build, case, workdir) as session:
        session.infer(images)
        session.synchronize()
        evidence = session.evidence()

    assert evidence["precision"] == case.precision
    assert evidence["threads"] in (case.threads, None)
    assert not evidence.get("fallback")


@pytest.mark.parametrize("task", known_tasks())
@pytest.mark.parametrize("architecture", [name for name in known_architectures() if name != "efficientnet_b5"])
@pytest.mark.parametrize("backend", ["torchscript", "onnx", "openvino"])
def test_every_network_exports(backend: str, architecture: str, task: str, build: Build, workdir: Path) -> None:
    check_parity(make_case(backend=backend, architecture=architecture, task=task), build, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in known_architectures() if name != "efficientnet_b5"])
@pytest.mark.parametrize("backend", COMPILING)
def test_every_network_compiles(backend: str, architecture: str, build: Build, workdir: Path) -> None:
    task = "galaxy_morphology" if architecture == "resnet34" else "substructure"
    check_parity(make_case(backend=backend, architecture=architecture, task=task), build, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("task", known_tasks())
@pytest.mark.parametrize("backend", ["eager", "torchscript", "onnx", "openvino", *COMPILING])
def test_the_largest_network_runs(backend: str, task: str, build: Build, workdir: Path) -> None:
    check_parity(make_case(backend=backend, architecture="efficientnet_b5", task=task), build, workdir)


def test_the_resized_network_exports(build: Build, workdir: Path) -> None:
    check_parity(make_case(backend="onnx", architecture="efficientnet_b5", task="halo_mass"), build, workdir)


@pytest.mark.parametrize("name", known_backends())
def test_a_backend_refuses_what_its_table_lacks(name: str) -> None:
    backend = known_backends()[name]
    precisions = {"fp32", "tf32", "bf16", "fp16", "int8"}

    for device, table in backend.precisions.items():
        refused = {p for p in precisions if backend.refuse(make_case(backend=name, device=device, precision=p))}
        assert refused == precisions - set(table)


@pytest.mark.parametrize("name", known_backends())
def test_probing_imports_no_runtime(name: str) -> None:
    code = (
        "import sys; from bench.backends import known_backends; "
        f"known_backends()[{name!r}].probe('cpu'); known_backends()[{name!r}].probe('cuda'); "
        "print([name for name in ('torch', 'onnxruntime', 'openvino', 'tensorrt') if name in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
