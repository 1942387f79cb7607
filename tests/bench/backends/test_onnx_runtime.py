"""Threads of ONNX Runtime on a CPU, whose callers compute too."""

from pathlib import Path

import pytest

from bench.backends import known_backends
from bench.knob import apply_settings
from bench.onnx_cuda import provider_options
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import lens_like_images, make_case


@pytest.mark.parametrize(("threads", "slots", "pool"), [(4, 1, 4), (4, 2, 3), (2, 2, 1)])
def test_callers_and_pool_together_are_the_threads_of_the_case(
    tmp_path: Path, threads: int, slots: int, pool: int
) -> None:
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    case = make_case(backend="onnx", precision="fp32", threads=threads, batch_size=1)

    with known_backends()["onnx"].prepare(network, case, tmp_path, slots) as session:
        (runtime,) = session._sessions

        assert runtime.get_session_options().intra_op_num_threads == pool
        assert session.evidence()["threads"] == threads


@pytest.mark.parametrize(("streams", "images"), [(1, 4), (2, 2)])
def test_a_session_on_the_cpu_knows_how_many_images_it_gets(tmp_path: Path, streams: int, images: int) -> None:
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    case = make_case(backend="onnx", batch_size=4, threads=2)
    backend, case = apply_settings(known_backends()["onnx"], case, {"streams": streams})

    with backend.prepare(network, case, tmp_path) as session:
        shapes = [runtime.get_inputs()[0].shape for runtime in session._sessions]  # type: ignore[attr-defined]

        assert [shape[0] for shape in shapes] == [images] * streams
        assert session.infer(lens_like_images(4)).shape == (4, 3)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", "0"), ("tf32", "1"), ("fp16", "1")])
def test_tensor_cores_are_ruled_out_for_fp32_alone(precision: str, allowed: str) -> None:
    assert provider_options(precision, {}, captures=False)["use_tf32"] == allowed
