"""The pairs of QuantizeLinear and DequantizeLinear in an 8-bit graph: which there are, and which go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: Operations with weights: what is called a layer here.
LAYERS = ("Conv", "Gemm")
#: What is fused with the activation behind it, and with which; Mul stands for x * sigmoid(x).
FUSED, ACTIVATIONS = (*LAYERS, "Add"), ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Mul")


def count_float_convolutions(path: Path) -> int:
    """Return how many convolutions of the 8-bit graph in *path* have weights that stay float."""
    import onnx

    graph = onnx.load(str(path)).graph
    in_8_bits = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type == "Conv" and node.input[1] not in in_8_bits for node in graph.node)


def free_activations(model: Any) -> None:  # onnx is untyped
    """Take out each pair between a layer, or a sum, and what it is fused with."""
    maker = {name: node for node in model.graph.node for name in node.output}
    for quantize, dequantize, takers in list(_pairs(model)):
        source = quantize.input[0]
        is_fused = source in maker and maker[source].op_type in FUSED and takers
        if is_fused and all(taker.op_type in ACTIVATIONS for taker in takers):
            _reconnect(takers, dequantize.output[0], source)
            for node in (quantize, dequantize):
                model.graph.node.remove(node)


def free_others(model: Any, operations: Sequence[str]) -> None:  # onnx is untyped
    """Give the float number to those that share a pair with one of *operations*, as a sum behind the same layer."""
    for quantize, dequantize, takers in list(_pairs(model)):
        others = [taker for taker in takers if taker.op_type not in operations]
        _reconnect(others, dequantize.output[0], quantize.input[0])


def _pairs(model: Any) -> Iterator[tuple[Any, Any, list[Any]]]:  # onnx is untyped
    """Yield each QuantizeLinear with its DequantizeLinear and what takes the output of that."""
    maker = {name: node for node in model.graph.node for name in node.output}
    takers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and (quantize := maker.get(node.input[0])) is not None:
            yield quantize, node, takers.get(node.output[0], [])


def _reconnect(takers: Sequence[Any], before: str, now: str) -> None:  # onnx is untyped
    for taker in takers:
        taker.input[:] = [now if name == before else name for name in taker.input]
