"""An fp32 ONNX graph -> the same with 8-bit numbers in it: ranges, layers, pairs of (de)quantising operations.

The graph stays one of float operations between pairs of QuantizeLinear and DequantizeLinear (QDQ); a
runtime that knows them computes what lies between two pairs in integers. METHODOLOGY.md, "int8".
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.equalize import equalize_by
from bench.onnx_run import BATCH, Images, run_graph
from bench.qdq_pairs import LAYERS, free_activations, free_others

#: Inputs of an activation beyond which it gives the same whatever they are (HardSwish, HardSigmoid:
#: exactly, ONNX operators; Sigmoid: within 3.4e-4). A range need not reach further.
FLAT: Mapping[str, tuple[float, float]] = {
    "HardSwish": (-3.0, np.inf),
    "HardSigmoid": (-3.0, 3.0),
    "Sigmoid": (-8.0, 8.0),
}
#: x * sigmoid(x) is within 2.7e-3 of 0 below.
SILU_FLAT = (-8.0, np.inf)

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """Which numbers become 8 bits, and how. Weights are signed and symmetric, with a scale for each channel.

    Attributes:
        name: How it is called in the evidence.
        is_signed: Activations signed with zero point 0, instead of unsigned with any.
        operations: Operations whose inputs are quantised.
        float_outputs: Those of them whose outputs are not, unless the next one takes them quantised.
        fuses_activations: Nothing between a layer, or a sum, and its activation is quantised: the runtime makes one
            of both.
        weight_pairs: Weights stay float in the file, behind a pair of their own, biases float throughout,
            no two operations share a pair, and others read floats.
    """

    name: str
    is_signed: bool = False
    operations: tuple[str, ...]
    float_outputs: tuple[str, ...]
    fuses_activations: bool = False
    weight_pairs: bool = False


class Quantizer:
    """Makes 8-bit graphs of one fp32 graph, calibrated once.

    Args:
        path: The fp32 graph, BatchNorm folded.
        scheme: Which numbers become 8 bits.
        images: (N, C, H, W) in [0, 1]; their smallest and largest activations are the ranges.
    """

    def __init__(self, path: Path, scheme: Scheme, images: Images) -> None:
        import onnx

        self._scheme, self._images = scheme, images
        self.model = equalize_by(images, onnx.shape_inference.infer_shapes(onnx.load(str(path))))
        self._ranges = narrow_ranges(self.model, find_ranges(self.model, images))
        #: By name of a layer, the node with its weights and those without that follow it.
        self.layers = name_layers(self.model, scheme.operations)

    def save(self, path: Path, keep: Collection[str] = (), only: Collection[str] | None = None) -> None:
        """Write the graph to *path*, its answers over the calibration images moved by what 8 bits move their mean.

        The bias of the last layer makes up for it; the file is checked.

        Args:
            path: Where to.
            keep: Layers that stay fp32.
            only: If given, those alone that become 8 bits.
        """
        import onnx

        graph = self.quantize(keep, only)
        if (head := last_layer(self.model)) is not None:
            now, before = (run_graph(one, self._images, head.output[0]) for one in (graph, self.model))
            graph = self.quantize(keep, only, shift=(now - before).mean(axis=0, dtype=np.float64))
        onnx.save(graph, str(path))
        onnx.checker.check_model(str(path), full_check=True)

    def quantize(
        self, keep: Collection[str] = (), only: Collection[str] | None = None, shift: NDArray[np.float64] | None = None
    ) -> Any:  # onnx is untyped
        """Return the graph as an onnx.ModelProto.

        Args:
            keep: As of `save`.
            only: As of `save`.
            shift: Is taken off the bias of the last layer, (K).
        """
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        chosen = [name for name in self.layers if name not in keep and (only is None or name in only)]
        nodes = [node for name in chosen for node in self.layers[name]]
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if shift is not None:
            take_off_bias(model, shift)
        if not nodes:  # an empty list would be taken for all
            return model
        ranges = {name: tuple(np.float32(bound) for bound in bounds) for name, bounds in self._ranges.items()}
        scheme = self._scheme
        options = {
            "OpTypesToExcludeOutputQuantization": list(scheme.float_outputs),
            "ActivationSymmetric": scheme.is_signed,
            "QuantizeBias": not scheme.weight_pairs,
            "AddQDQPairToWeight": scheme.weight_pairs,
            "DedicatedQDQPair": scheme.weight_pairs,
            # A removed Relu would be missing where `free_activations` takes the pair after it out.
            "QDQKeepRemovableActivations": scheme.fuses_activations,
        }
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if scheme.is_signed else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=list(scheme.operations),
            extra_options=options,
        )
        done = quantizer.quantize_model()
        if scheme.fuses_activations:
            free_activations(done)
        if scheme.weight_pairs:
            free_others(done, scheme.operations)
        quantizer.model.topological_sort()
        return done


def depthwise_layers(path: Path, operations: Sequence[str]) -> set[str]:
    """Return the layers of the fp32 graph in *path* that convolve each channel by itself.

    Args:
        path: The graph.
        operations: That are quantised.
    """
    import onnx

    model = onnx.load(str(path))
    owner = {node: name for name, nodes in name_layers(model, operations).items() for node in nodes}
    grouped = {
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and any(one.name == "group" and one.i > 1 for one in node.attribute)
    }
    return {owner[node] for node in grouped if node in owner}


def last_layer(model: Any) -> Any:  # onnx is untyped
    """Return the layer with a bias that the outputs come from, or None where there is no such, or more than one."""
    heads = {node.output[0]: node for node in _back_to_layers(model) if node.op_type in LAYERS}
    return next((node for node in heads.values() if len(heads) == 1 and len(node.input) == 3), None)


def take_off_bias(model: Any, shift: NDArray[np.float64]) -> None:  # onnx is untyped
    """Take *shift* (K) off the bias of the last layer of the fp32 *model*."""
    from onnx import numpy_helper

    bias = next(tensor for tensor in model.graph.initializer if tensor.name == last_layer(model).input[2])
    moved = numpy_helper.to_array(bias) - shift
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))


def find_ranges(model: Any, images: Images) -> Ranges:  # onnx is untyped
    """Return the smallest and the largest value of each float tensor of *model* over *images*."""
    import onnx
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader:
        """What ONNX Runtime asks for images."""

        def __init__(self) -> None:
            self._batches = iter(np.array_split(images, -(-len(images) // BATCH)))

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory() as folder:
        # It leaves files beside the graph, too.
        copy = Path(folder) / "graph.onnx"
        onnx.save(model, str(copy))
        calibrator = create_calibrator(copy, augmented_model_path=str(copy.with_name("augmented.onnx")))
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    bounds = {name: data.range_value for name, data in found.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in bounds.items()}


def narrow_ranges(model: Any, ranges: Ranges) -> Ranges:  # onnx is untyped
    """Return *ranges* without what lies where the activation that takes a tensor is flat: 8 bits go further so."""
    takers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    narrowed = dict(ranges)
    for name, (low, high) in ranges.items():
        flat = _flat_beyond(name, takers.get(name, []))
        if flat:
            narrowed[name] = (max(low, flat[0]), min(high, flat[1]))
    return narrowed


def _flat_beyond(name: str, takers: Sequence[Any]) -> tuple[float, float] | None:  # onnx is untyped
    """Return between which values of the tensor *name* its *takers* tell them apart; None for all."""
    kinds = [node.op_type for node in takers]
    if len(set(kinds)) == 1:
        return FLAT.get(kinds[0])
    if sorted(kinds) == ["Mul", "Sigmoid"]:
        sigmoid, product = sorted(takers, key=lambda node: node.op_type == "Mul")
        return SILU_FLAT if set(product.input) == {name, sigmoid.output[0]} else None
    return None


def name_layers(model: Any, operations: Sequence[str]) -> dict[str, list[str]]:  # onnx is untyped
    """Return by layer the names of the nodes that are quantised with it.

    A layer is called by its weights, e.g. ``blocks.1.0.conv_dw``; a node without any goes with the layer whose
    output it takes first. What follows the last layer on the way to the outputs, the output scale,
    goes with none: it is no part of the backbone and stays float.
    """
    tail = {node.name for node in _back_to_layers(model) if node.op_type not in LAYERS}
    layers: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in LAYERS:
            name = node.input[1].removeprefix("backbone.").removesuffix(".weight")
        else:
            name = next((owner[source] for source in node.input if source in owner), "")
        owner |= dict.fromkeys(node.output, name)
        if node.op_type in operations and name and node.name not in tail:
            layers.setdefault(name, []).append(node.name)
    return layers


def _back_to_layers(model: Any) -> Iterator[Any]:  # onnx is untyped
    """Yield the nodes from the outputs back to the layers that they come from, these included."""
    maker = {name: node for node in model.graph.node for name in node.output}
    front = [value.name for value in model.graph.output]
    while front:
        node = maker.get(front.pop())
        if node is not None:
            yield node
            front += () if node.op_type in LAYERS else node.input
