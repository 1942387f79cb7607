from __future__ import annotations

import pytest

from bench.backends import known_backends
from bench.knob import apply_settings, describe_settings, knobs_of, thread_counts
from tests.bench.conftest import make_case


@pytest.mark.parametrize(("threads", "counts"), [(1, (1,)), (2, (2, 1)), (6, (6, 3, 1)), (16, (16, 8, 4, 2, 1))])
def test_threads_are_halved_down_to_one(threads: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(threads) == counts


def test_a_batch_and_the_threads_are_divided_evenly() -> None:
    backend = known_backends()["openvino"]
    streams = {
        batch: knobs_of(make_case(backend="openvino", batch_size=batch, threads=4), backend).get("streams")
        for batch in (1, 6, 32)
    }

    assert streams == {1: None, 6: (1, 2), 32: (1, 2, 4)}


def test_one_thread_leaves_no_number_of_threads_to_choose() -> None:
    backend = known_backends()["torchscript"]

    assert knobs_of(make_case(backend="torchscript", threads=1), backend) == {}
    assert knobs_of(make_case(backend="torchscript", threads=2), backend) == {"threads": (2, 1)}


@pytest.mark.parametrize("name", ["inductor", "aoti"])
def test_what_compiles_anew_for_minutes_is_not_tried_with_other_threads(name: str) -> None:
    assert "threads" not in knobs_of(make_case(backend=name, threads=2), known_backends()[name])


def test_threads_of_the_host_are_no_setting_of_a_gpu() -> None:
    case = make_case(backend="onnx", device="cuda", threads=2)

    assert list(knobs_of(case, known_backends()["onnx"])) == ["cudnn_conv_algo_search", "prefer_nhwc"]


def test_settings_reach_backend_and_case() -> None:
    case = make_case(backend="openvino", threads=2)

    backend, changed = apply_settings(known_backends()["openvino"], case, {"threads": 1, "cpu_pinning": False})

    assert backend is not known_backends()["openvino"]
    assert changed.threads == 1


def test_a_setting_never_takes_more_threads_than_the_case_has() -> None:
    _, changed = apply_settings(known_backends()["eager"], make_case(threads=1), {"threads": 2})

    assert changed.threads == 1


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="onnx has no setting nimbleness"):
        apply_settings(known_backends()["onnx"], make_case(backend="onnx"), {"nimbleness": 9})


def test_only_builds_that_may_differ_are_numbered() -> None:
    case = make_case(backend="trt", device="cuda")

    backend, _ = apply_settings(known_backends()["trt"], case, {"build": 2})

    assert backend is not known_backends()["trt"]
    with pytest.raises(ValueError, match="onnx has no setting build"):
        apply_settings(known_backends()["onnx"], case, {"build": 2})


def test_settings_are_told_in_one_line() -> None:
    assert describe_settings({"threads": 1, "streams": 2}) == "streams=2, threads=1"
    assert describe_settings({}) == "default"
