from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from bench.export import BATCH, MAKERS, cached_file, network_digest, onnx_file, torchscript_file, was_cached
from lensing_models.network import LensNetwork
from tests.bench.test_qdq_graph import small_network

Build = Callable[[str, str], LensNetwork]


def test_a_file_is_made_once(build: Build, workdir: Path) -> None:
    first = onnx_file(build("mobilenetv3_small", "substructure"), workdir)
    written = first.stat().st_mtime_ns

    second = onnx_file(build("mobilenetv3_small", "substructure"), workdir)

    assert (second, second.stat().st_mtime_ns) == (first, written)


def test_a_damaged_file_is_made_again(build: Build, tmp_path: Path) -> None:
    path = torchscript_file(build("mobilenetv3_small", "substructure"), tmp_path, "fp32", "cpu")
    path.write_bytes(path.read_bytes()[:1000])

    again = torchscript_file(build("mobilenetv3_small", "substructure"), tmp_path, "fp32", "cpu")

    assert again == path
    assert path.stat().st_size > 1_500_000 * 4  # the weights of 1.5 million parameters


def ask_slowly(workdir: Path) -> tuple[bytes, bool]:
    """Ask for a file whose content names the call that wrote it, as one run of several does."""
    (workdir / f"here-{os.getpid()}").touch()
    deadline = time.monotonic() + 120
    while len(list(workdir.glob("here-*"))) < 2:  # until the other one asks, too
        assert time.monotonic() < deadline, "the other process did not come"
        time.sleep(0.01)
    asked_at = str(time.monotonic_ns()).encode()

    def write(path: Path) -> None:
        with path.open("wb", buffering=0) as stream:
            stream.write(asked_at)
            time.sleep(1.0)
            stream.write(b" whole")

    path = cached_file(small_network(), workdir, "slow", ".txt", write)
    return path.read_bytes(), was_cached(path)


def test_of_two_runs_at_once_one_makes_the_file_and_both_read_it_whole(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        (first, was_first_cached), (second, was_second_cached) = pool.map(ask_slowly, [tmp_path] * 2)

    assert first == second
    assert first.endswith(b" whole")
    assert {was_first_cached, was_second_cached} == {True, False}


def test_other_weights_give_another_file(build: Build, workdir: Path) -> None:
    network = build("mobilenetv3_small", "substructure")
    first = torchscript_file(network, workdir, "fp32", "cpu")
    with torch.no_grad():
        network.output_shift.add_(1)

    assert torchscript_file(network, workdir, "fp32", "cpu") != first


@pytest.mark.parametrize("maker", MAKERS)
def test_another_version_of_a_package_that_makes_it_gives_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    installed = importlib.metadata.version

    def write(path: Path) -> None:
        path.write_bytes(b"made")

    def make() -> Path:
        return cached_file(small_network(), tmp_path, "recipe", ".bin", write)

    before = make()
    monkeypatch.setattr(
        "bench.export.importlib.metadata.version", lambda name: "0.1" if name == maker else installed(name)
    )

    assert make() != before


def test_tf32_shares_the_file_of_fp32(build: Build, workdir: Path) -> None:
    files = {onnx_file(build("mobilenetv3_small", "substructure"), workdir, name) for name in ("fp32", "tf32")}

    assert len(files) == 1


def test_fp16_keeps_fp32_at_the_doors(build: Build, workdir: Path) -> None:
    graph = onnx.load(str(onnx_file(build("mobilenetv3_small", "substructure"), workdir, "fp16"))).graph

    doors = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}

    assert doors == {onnx.TensorProto.FLOAT}
    assert weights == {onnx.TensorProto.FLOAT16}


def test_a_half_precision_graph_holds_the_biases_of_its_convolutions_and_computes_none(
    build: Build, workdir: Path
) -> None:
    graph = onnx.load(str(onnx_file(build("mobilenetv3_small", "substructure"), workdir, "fp16"))).graph
    held = {tensor.name for tensor in graph.initializer}

    taken = {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}

    assert taken <= held
    assert not {"CastLike", "Expand"} & {node.op_type for node in graph.node}


def test_the_batch_is_dynamic_and_the_rest_is_not(build: Build, workdir: Path) -> None:
    graph = onnx.load(str(onnx_file(build("mobilenetv3_small", "substructure"), workdir))).graph

    batch, *rest = graph.input[0].type.tensor_type.shape.dim

    assert batch.dim_param
    assert [side.dim_value for side in rest] == [1, 150, 150]


@pytest.mark.parametrize(
    ("network", "task", "precision"),
    [
        ("mobilenetv3_small", "substructure", "fp16"),
        ("resnet34", "galaxy_morphology", "fp32"),  # is resized
        ("resnet34", "galaxy_morphology", "fp16"),
    ],
)
def test_nothing_computes_a_shape_once_the_batch_is_fixed(
    build: Build, workdir: Path, tmp_path: Path, network: str, task: str, precision: str
) -> None:
    """On CUDA ONNX Runtime would put that on the CPU, which a session there forbids."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "fixed.onnx")
    options.add_free_dimension_override_by_name(BATCH, 4)

    onnxruntime.InferenceSession(str(onnx_file(build(network, task), workdir, precision)), options)

    left = {node.op_type for node in onnx.load(str(tmp_path / "fixed.onnx")).graph.node}
    assert "Conv" in left
    assert not left & {"Shape", "Concat", "Squeeze", "Unsqueeze", "Gather", "Slice"}


def test_forbidden_tf32_does_not_break_the_export(build: Build, tmp_path: Path, forbidden_tf32: None) -> None:
    assert onnx_file(build("mobilenetv3_small", "substructure"), tmp_path).exists()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_the_digest_follows_a_single_weight(build: Build) -> None:
    network = build("mobilenetv3_small", "substructure")
    before = network_digest(network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3

    assert network_digest(network) != before
