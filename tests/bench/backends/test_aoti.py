"""AOTInductor's packages: never a stale one, never half of one, and two callers at once."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.backends import aoti
from bench.backends.aoti import BACKEND, AotiSession
from bench.export import cached_file
from bench.inductor_build import aoti_package, find_toolkit
from bench.parity import TOLERANCE, compare, compute_reference, run_through
from bench.records import Case
from lensing_models.network import LensNetwork
from tests.bench.conftest import TINY, lens_like_images, make_case

pytestmark = pytest.mark.skipif(bool(BACKEND.probe("cpu").reason), reason=BACKEND.probe("cpu").reason)

Build = Callable[[str, str], LensNetwork]
CASE = make_case(backend="aoti", architecture=TINY)


def prepare(network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> AotiSession:
    return BACKEND.prepare(network, case, workdir, slots)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the recipes of which a file is asked for; none is compiled, an empty file stands for it."""
    recipes: list[str] = []

    def note(network: LensNetwork, workdir: Path, recipe: str, suffix: str, write: Callable[[Path], None]) -> Path:
        recipes.append(recipe)
        return cached_file(network, workdir, recipe, suffix, lambda path: path.write_bytes(b""))

    monkeypatch.setattr("bench.inductor_build.cached_file", note)
    monkeypatch.setattr(aoti, "load_package", lambda *_: None)
    return recipes


def package(network: LensNetwork, case: Case, workdir: Path, threads: int = 2) -> Path:
    """Return the file that a session of *case* is loaded from."""
    torch.set_num_threads(threads)
    return prepare(network, case, workdir)._path


def test_a_package_is_for_one_network_precision_batch_and_number_of_threads(
    build: Build, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = package(build(TINY, "substructure"), CASE, tmp_path)
    changed = build(TINY, "substructure")
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3

    others = [
        package(changed, CASE, tmp_path),
        package(build(TINY, "substructure"), replace(CASE, precision="bf16"), tmp_path),
        package(build(TINY, "substructure"), replace(CASE, batch_size=3), tmp_path),
        package(build(TINY, "substructure"), CASE, tmp_path, threads=1),
    ]
    monkeypatch.setattr("bench.inductor_build.describe_machine", lambda device: "another compiler")
    others.append(package(build(TINY, "substructure"), CASE, tmp_path))

    assert len({first, *others}) == 1 + len(others)
    monkeypatch.undo()


def test_the_recipe_names_torch_the_compiler_and_the_processor(
    build: Build, tmp_path: Path, written: list[str]
) -> None:
    package(build(TINY, "substructure"), CASE, tmp_path)

    (recipe,) = written
    assert torch.__version__ in recipe
    assert torch.backends.cpu.get_cpu_capability() in recipe
    assert any(name in recipe for name in ("g++", "clang", "c++"))


def test_a_damaged_package_is_made_again(build: Build, workdir: Path) -> None:
    images = lens_like_images(2)
    reference = compute_reference(build(TINY, "substructure"), images, "cpu")
    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        path = session._path
    path.write_bytes(path.read_bytes()[:1000])

    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        again = compare(run_through(session, images, CASE), reference, "fp32")

    assert session._path == path
    assert again.error <= TOLERANCE


def test_a_package_is_for_what_the_environment_tells_the_compiler(
    build: Build, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_nothing(*_: object, package_path: str, **__: object) -> None:
        Path(package_path).touch()

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", write_nothing)
    plain = aoti_package(build(TINY, "substructure"), CASE, workdir / "variables")
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")

    assert aoti_package(build(TINY, "substructure"), CASE, workdir / "variables") != plain


def test_a_later_session_compiles_nothing(build: Build, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with prepare(build(TINY, "substructure"), CASE, workdir):
        pass
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)

    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        assert session.artifact_cached
        assert (session.artifact_bytes or 0) > 0


def test_nothing_is_left_behind_but_what_is_cached(build: Build, workdir: Path) -> None:
    before = os.environ.get("TMPDIR")

    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        left = [path.name for path in workdir.iterdir() if path.name.startswith("unpacked-")]
        # The library is in use all the same.
        assert session.infer(lens_like_images(2)).isfinite().all()

    assert left == []
    assert os.environ.get("TMPDIR") == before


def test_a_call_leaves_pythons_lock_to_the_other_callers(build: Build, workdir: Path) -> None:
    """A thread that never gives up the lock by itself is seen within a call only if the call gives it up."""
    images = lens_like_images(2)
    inside, seen, over = threading.Event(), threading.Event(), threading.Event()

    def call_often(session: AotiSession) -> None:
        while not (seen.is_set() or over.is_set()):
            inside.set()
            session.infer(images)
            inside.clear()

    with prepare(build(TINY, "substructure"), CASE, workdir, slots=2) as session:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        caller = threading.Thread(target=call_often, args=(session,))
        try:
            caller.start()
            for _ in range(100_000):
                if inside.is_set():
                    seen.set()
                    break
                over.wait(1e-4)
        finally:
            over.set()
            sys.setswitchinterval(before)
            caller.join(60)
        assert seen.is_set()
        assert session.evidence()["runners"] == 2


def test_the_evidence_is_read_from_the_code_in_the_package(build: Build, workdir: Path) -> None:
    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        evidence = session.evidence()

    # Three convolutions and a linear layer.
    assert evidence["mkldnn_calls"] == 4
    assert evidence["weight_dtypes"] == "float32"
    assert evidence["compiled_threads"] in ("2", "")


def test_code_for_other_threads_is_a_fallback(build: Build, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "#pragma omp parallel num_threads(2)"
    monkeypatch.setattr(aoti, "read_code", lambda package: iter([code]))
    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        assert "fallback" not in session.evidence()
        torch.set_num_threads(1)
        assert session.evidence()["fallback"] == "compiled for 2 threads, run with 1"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")

    reason = BACKEND.probe("cpu").reason

    assert "'no-such-compiler'" in reason
    assert "CXX" in reason


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_on_cuda_it_wants_the_toolkits_headers(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))

    assert find_toolkit() is None
    assert "cuda.h" in BACKEND.probe("cuda").reason
    assert not BACKEND.probe("cpu").reason

    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda.h").touch()

    assert find_toolkit() == tmp_path
    assert "cuda.h" not in BACKEND.probe("cuda").reason
