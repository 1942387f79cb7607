from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from bench.export import onnx_file
from bench.onnx_run import run_graph
from bench.qdq_graph import Quantizer, find_ranges, name_layers, narrow_ranges
from bench.quantize import ONNX_RUNTIME, OPENVINO, TENSORRT
from lensing_models.network import LensNetwork

Build = Callable[[str, str], LensNetwork]
SCHEMES = pytest.mark.parametrize("scheme", [ONNX_RUNTIME, OPENVINO, TENSORRT], ids=lambda scheme: scheme.name)


class Small(nn.Module):
    """All that the networks are made of: a stem, a depthwise block with a gate and a sum, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.point = nn.Conv2d(8, 8, 1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = nn.functional.hardswish(self.stem(images))
        inner = torch.relu(self.depthwise(stem))
        gated = inner * nn.functional.hardsigmoid(self.gate(inner.mean((2, 3), keepdim=True)))
        silu = nn.functional.silu(self.point(gated))
        out: torch.Tensor = self.classifier((silu + stem).mean((2, 3)))
        return out


def small_network() -> LensNetwork:
    torch.manual_seed(0)
    network = LensNetwork(Small(), image_size=12, input_size=12, output_count=3).eval()
    nn.init.normal_(network.output_shift)
    return network


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((12, 1, 12, 12), np.float32)


def quantizer(scheme: Any, workdir: Path, images: Any) -> Quantizer:
    return Quantizer(onnx_file(small_network(), workdir), scheme, images)


def takers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


@SCHEMES
def test_a_runtime_computes_what_onnx_says_of_the_graph(scheme: Any, images: Any, workdir: Path) -> None:
    model = quantizer(scheme, workdir, images).quantize()

    (expected,) = ReferenceEvaluator(model).run(None, {"images": images})

    # What a rounding the other way moves: a step of the last layer's input, through its weights.
    assert np.abs(run_graph(model, images) - expected).max() <= 0.01 * expected.std()


@SCHEMES
def test_the_8_bit_graph_is_near_to_the_float_one(scheme: Any, images: Any, workdir: Path) -> None:
    made = quantizer(scheme, workdir, images)
    with torch.inference_mode():
        exact = small_network()(torch.from_numpy(images)).numpy()

    error = np.abs(run_graph(made.quantize(), images) - exact).max()

    # A scale of 1/255 or 1/127 of the range, rounded to half: some 0.4 % a layer, six of them in a row.
    assert 0 < error <= 0.05 * np.abs(exact).max()


def test_a_single_layer_keeps_the_bound_of_its_roundings(images: Any, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(3, 144)).astype(np.float32)
    constants = [numpy_helper.from_array(weights, "weight"), numpy_helper.from_array(np.ones(3, np.float32), "bias")]
    flatten = onnx.helper.make_node("Flatten", ["images"], ["flat"], "flatten")
    linear = onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["outputs"], "linear", transB=1)
    shapes = {"images": ["batch", 1, 12, 12], "outputs": ["batch", 3]}
    doors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in shapes]
    graph = onnx.helper.make_graph([flatten, linear], "linear", doors[:1], doors[1:], constants)
    path = tmp_path / "linear.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10), str(path))
    exact = ReferenceEvaluator(str(path)).run(None, {"images": images})[0]

    outputs = run_graph(Quantizer(path, ONNX_RUNTIME, images).quantize(), images)

    step, steps = images.max() / 255, np.abs(weights).max(axis=1) / 127
    flat = images.reshape(len(images), -1)
    # Half a step of each input times its weight, half a step of each weight times its (rounded) input; the bias's own.
    bound = step / 2 * np.abs(weights).sum(axis=1) + steps / 2 * (np.abs(flat).sum(axis=1)[:, None] + 144 * step / 2)
    assert (np.abs(outputs - exact) <= bound + step * steps).all()
    assert np.abs(outputs - exact).max() > 0


def test_layers_are_called_as_torch_calls_its_modules(build: Build, workdir: Path) -> None:
    network = build("mobilenetv3_small", "substructure")
    weighty = {name for name, module in network.backbone.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}

    graph = onnx.load(str(onnx_file(network, workdir)))

    assert set(name_layers(graph, ONNX_RUNTIME.operations)) == weighty


@SCHEMES
def test_what_follows_the_classifier_stays_float(scheme: Any, images: Any, workdir: Path) -> None:
    graph = quantizer(scheme, workdir, images).quantize().graph
    maker = {name: node for node in graph.node for name in node.output}

    add = maker["outputs"]
    mul = maker[add.input[0]]

    assert (add.op_type, mul.op_type) == ("Add", "Mul")
    assert maker[mul.input[0]].op_type == "Gemm"


def test_ranges_are_the_extremes_over_all_images(images: Any, workdir: Path) -> None:
    network = small_network()
    with torch.inference_mode():
        stem = network.backbone.stem(torch.from_numpy(images))  # type: ignore[operator]  # a Conv2d

    ranges = find_ranges(onnx.load(str(onnx_file(network, workdir))), images)

    assert ranges["images"] == (images.min(), images.max())
    assert any(np.allclose(found, (stem.min(), stem.max()), atol=1e-5) for found in ranges.values())


def test_a_range_ends_where_the_activation_is_flat() -> None:
    nodes = [
        onnx.helper.make_node("HardSwish", ["a"], ["a_out"]),
        onnx.helper.make_node("HardSigmoid", ["b"], ["b_out"]),
        onnx.helper.make_node("Sigmoid", ["c"], ["c_gate"]),
        onnx.helper.make_node("Mul", ["c", "c_gate"], ["c_out"]),
        onnx.helper.make_node("HardSwish", ["d"], ["d_out"]),
        onnx.helper.make_node("Add", ["d", "a_out"], ["d_sum"]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))

    narrowed = narrow_ranges(model, dict.fromkeys("abcd", (-20.0, 30.0)))

    # d goes into a sum as well, to which every value is another one.
    assert narrowed == {"a": (-3, 30), "b": (-3, 3), "c": (-8, 30), "d": (-20, 30)}


@pytest.mark.parametrize(("scheme", "kind"), [(ONNX_RUNTIME, "UINT8"), (OPENVINO, "UINT8"), (TENSORRT, "INT8")])
def test_activations_have_the_sign_of_the_scheme(scheme: Any, kind: str, images: Any, workdir: Path) -> None:
    graph = quantizer(scheme, workdir, images).quantize().graph
    constants = {tensor.name: tensor for tensor in graph.initializer}

    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]

    assert {onnx.TensorProto.DataType.Name(zero.data_type) for zero in zeros if not zero.dims} == {kind}


def test_the_graph_for_onnx_runtime_quantises_the_output_of_each_convolution(images: Any, workdir: Path) -> None:
    graph = quantizer(ONNX_RUNTIME, workdir, images).quantize().graph

    after = [takers(graph, node.output[0]) for node in graph.node if node.op_type == "Conv"]

    assert all([node.op_type for node in nodes] == ["QuantizeLinear"] for nodes in after)


def test_the_graph_for_openvino_leaves_the_activation_to_the_convolution(images: Any, workdir: Path) -> None:
    graph = quantizer(OPENVINO, workdir, images).quantize().graph
    after = [takers(graph, node.output[0]) for node in graph.node if node.op_type == "Conv"]

    kinds = Counter("+".join(sorted(node.op_type for node in nodes)) for nodes in after)

    assert kinds == {"HardSwish": 1, "Relu": 1, "HardSigmoid": 1, "Mul+Sigmoid": 1}


def test_the_graph_for_tensorrt_has_what_its_parser_takes(images: Any, workdir: Path) -> None:
    graph = quantizer(TENSORRT, workdir, images).quantize().graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]

    # Zero points are int8 zeros, scales positive constants, the operations those of ONNX.
    assert all(constants[node.input[2]].dtype == np.int8 and not constants[node.input[2]].any() for node in pairs)
    assert all((constants[node.input[1]] > 0).all() and not node.domain for node in pairs)
    # Each quantised number goes into one DequantizeLinear, and that into one operation.
    for node in pairs:
        following = takers(graph, node.output[0])
        assert len(following) == 1
        assert node.op_type == "DequantizeLinear" or following[0].op_type == "DequantizeLinear"
    for node in layers:
        of_input, of_weights = (maker[maker[name].input[0]] for name in node.input[:2])
        assert {of_input.op_type, of_weights.op_type} == {"QuantizeLinear"}
        assert constants[of_weights.input[0]].dtype == np.float32  # the pair starts at float weights
        assert constants[of_weights.input[1]].shape == (len(constants[of_weights.input[0]]),)  # a scale a channel
        assert constants[node.input[2]].dtype == np.float32  # the bias, without any pair


@SCHEMES
def test_a_kept_layer_reads_floats(scheme: Any, images: Any, workdir: Path) -> None:
    graph = quantizer(scheme, workdir, images).quantize(keep=["depthwise"]).graph
    constants = {tensor.name for tensor in graph.initializer}

    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"} & constants

    assert weights == {"backbone.depthwise.weight"}


def test_a_file_of_a_quantised_graph_passes_the_full_check(images: Any, workdir: Path, tmp_path: Path) -> None:
    for scheme in (ONNX_RUNTIME, OPENVINO, TENSORRT):
        quantizer(scheme, workdir, images).save(tmp_path / "graph.onnx")


def test_no_layer_chosen_is_the_float_graph(images: Any, workdir: Path) -> None:
    made = quantizer(ONNX_RUNTIME, workdir, images)

    assert made.quantize(only=[]) == made.model
