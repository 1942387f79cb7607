"""torch.compile: one graph, frozen, of the kernels that belong to network, batch and threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.backends import inductor
from bench.backends.inductor import BACKEND, InductorSession, count_calls, written_code
from bench.parity import TOLERANCE, compare, compute_reference, run_through
from bench.records import Case
from lensing_models.network import LensNetwork
from tests.bench.conftest import TINY, lens_like_images, make_case

pytestmark = pytest.mark.skipif(bool(BACKEND.probe("cpu").reason), reason=BACKEND.probe("cpu").reason)

Build = Callable[[str, str], LensNetwork]
CASE = make_case(backend="inductor", architecture=TINY)


def prepare(network: LensNetwork, case: Case, workdir: Path) -> InductorSession:
    return BACKEND.prepare(network, case, workdir)


def code_of(session: InductorSession) -> str:
    return "\n".join(written_code(module) for module in session._built.written)


def test_a_published_network_is_one_frozen_graph(build: Build, workdir: Path) -> None:
    case = make_case(backend="inductor", precision="bf16")
    network = build(case.architecture, case.task)
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules())

    with prepare(network, case, workdir) as session:
        session.infer(lens_like_images(2))
        evidence = session.evidence()

    assert evidence["mkldnn_calls"] == layers
    assert (evidence["graphs"], evidence["graph_breaks"]) == (1, 0)
    # A weight and a bias each: BatchNorm is folded in.
    assert int(str(evidence["frozen_weights"])) >= layers
    assert int(str(evidence["generated_kernels"])) > 0
    assert evidence["precision"] == "bf16"
    assert "fallback" not in evidence


def test_kernels_of_one_thread_serve_no_session_of_two(build: Build, workdir: Path) -> None:
    baked = {}

    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        with prepare(build(TINY, "substructure"), CASE, workdir) as session:
            counts = {int(count) for count in re.findall(r"num_threads\((\d+)\)", code_of(session))}
            baked.setdefault(threads, []).append(counts)
            assert session.evidence()["threads"] == threads

    assert baked == {1: [set(), set()], 2: [{2}]}


def test_another_network_in_the_same_cache_answers_for_itself(build: Build, workdir: Path) -> None:
    images = lens_like_images(2)
    changed = build(TINY, "substructure")
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    reference = compute_reference(changed, images, "cpu")
    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        first = run_through(session, images, CASE)

    with prepare(changed, CASE, workdir) as session:
        second = run_through(session, images, CASE)

    assert compare(second, reference, "fp32").error <= TOLERANCE
    assert compare(first, reference, "fp32").error > 100 * TOLERANCE


def test_a_graph_that_is_compiled_anew_is_a_fallback(build: Build, workdir: Path) -> None:
    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        assert "fallback" not in session.evidence()
        session.infer(lens_like_images(3))
        assert "compiled anew 1 times" in str(session.evidence()["fallback"])


def test_a_graph_break_is_an_error(build: Build, workdir: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return images.mean(dim=(1, 2, 3))[:, None]

    network = build(TINY, "substructure")
    network.backbone.append(Broken())

    with pytest.raises(RuntimeError, match="graph break"):
        prepare(network, CASE, workdir)


def test_forbidden_tf32_does_not_break_the_compiler(build: Build, workdir: Path, forbidden_tf32: None) -> None:
    with prepare(build(TINY, "substructure"), replace(CASE, batch_size=1), workdir) as session:
        assert session.infer(lens_like_images(1)).isfinite().all()


def test_what_it_writes_is_under_the_work_folder(build: Build, tmp_path: Path) -> None:
    with prepare(build(TINY, "substructure"), CASE, tmp_path) as session:
        written = [Path(str(module.__file__)) for module in session._built.written]

    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path)
    assert written
    assert all(path.is_relative_to(tmp_path) for path in written)


def test_a_network_that_is_not_frozen_is_a_fallback(
    build: Build, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "compile_settings", lambda: {"freezing": False, "cpp.threads": 2})

    with prepare(build(TINY, "substructure"), CASE, workdir) as session:
        assert session.evidence()["fallback"] == "no weight was frozen"


def test_calls_are_counted_by_kind() -> None:
    code = """
    def call(self, args):
        cpp_fused_mul_0(arg0, buf0)
        buf1 = torch.ops.mkldnn._convolution_pointwise.default(buf0, _frozen_param1)
        assert_size_stride(buf1, (2, 8), (8, 1), 'torch.ops.mkldnn._convolution_pointwise.default')
        extern_kernels.mm(buf1, _frozen_param2, out=buf2)
        triton_poi_fused_relu_1.run(buf2, 64, stream=stream0)
    """

    assert count_calls(code) == {"generated_kernels": 2, "mkldnn_calls": 1, "library_calls": 1}


def test_without_pythons_headers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.inductor_build.sysconfig.get_path", lambda name: str(tmp_path))

    reason = BACKEND.probe("cpu").reason

    assert "Python.h" in reason
    assert "python3-dev" in reason


NO_TRACE = """
import multiprocessing.synchronize, pathlib, sys
import psutil
from bench.backends.inductor import BACKEND
from tests.bench.conftest import TINY, make_case, new_network

made = []
make = multiprocessing.synchronize.SemLock.__init__
def note(self, *args, **options):
    made.append(args)
    make(self, *args, **options)
multiprocessing.synchronize.SemLock.__init__ = note
case = make_case(backend="inductor", architecture=TINY)
with BACKEND.prepare(new_network(TINY, case.task), case, pathlib.Path(sys.argv[1])):
    print(len(made), len(psutil.Process().children(recursive=True)))
"""


def test_a_worker_that_compiled_can_be_killed_without_a_trace(workdir: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", NO_TRACE, str(workdir)], capture_output=True, text=True, check=True)

    assert answer.stdout.split() == ["0", "0"]
