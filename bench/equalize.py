"""An fp32 graph -> the same function, its channels scaled so that one 8-bit step suits all channels of a tensor.

A tensor of activations has one step for all of its channels, which is coarse for those that stay small. Between
convolutions where nothing but homogeneous operations lie (f(ax) = af(x) for a > 0), the weights that make a channel
can be divided by a factor and those that take it multiplied: the graph computes the same. Nagel et al. 2019
(arXiv:1906.04721, cross-layer equalisation) and Xiao et al. 2022 (arXiv:2211.10438) do so; here the factors come from
the activations alone, for these cost nearly all of the error, and a residual stream is one group of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.onnx_run import Images, run_batches

#: How far channels are made alike: 0 not at all, 1 until the largest activation of each is the same. METHODOLOGY.md,
#: "int8", has what each gave.
POWER = 0.75
#: The smallest channel is taken for no smaller than this, of the largest.
FLOOR = 1 / 64
#: Operations that keep the channels apart and are homogeneous.
HOMOGENEOUS = frozenset({"Relu", "Add", "MaxPool", "GlobalAveragePool"})
#: What makes the other factor of a product a gate, by which each channel is multiplied.
GATES = frozenset({"Sigmoid", "HardSigmoid"})
#: Means over the image, behind which a Reshape drops the axes of length 1.
POOLS = frozenset({"GlobalAveragePool", "ReduceMean"})

Node = Any  # onnx is untyped
Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelGroup:
    """Tensors whose channels can be scaled together.

    Attributes:
        makers: Convolutions that make one of them.
        takers: Convolutions and matrix products (``Gemm``) that take one.
        tensors: Those that something else than a Relu takes: where small channels are rounded.
    """

    makers: tuple[Node, ...]
    takers: tuple[Node, ...]
    tensors: tuple[str, ...]


def equalize_by(images: Images, model: Any) -> Any:  # onnx is untyped
    """Return *model*, the same function, with its channels scaled by what they are on *images* (`bench.equalize`)."""
    names = tensors_of(model)
    peaks: dict[str, NDArray[np.float32]] = {}
    for tensors in run_batches(model, images, names) if names else ():
        for name, values in zip(names, tensors, strict=True):
            found = np.abs(values).max(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
            peaks[name] = np.maximum(peaks.get(name, found), found)
    return equalize(model, peaks)


def equalize(model: Any, peaks: Mapping[str, Weights], power: float = POWER) -> Any:
    """Return a copy of the onnx.ModelProto *model* with the channels of its groups scaled.

    Args:
        model: fp32, BatchNorm folded.
        peaks: The largest magnitude of each channel, by name, of the `tensors_of` the graph.
        power: See `POWER`.
    """
    import onnx

    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    initial = {tensor.name: tensor for tensor in scaled.graph.initializer}
    for group in channel_groups(scaled):
        factors = scale_factors(np.max([peaks[name] for name in group.tensors], axis=0), power)
        for node in group.makers:
            _scale(node.input[1:], initial, np.reciprocal(factors), axis=0)
        for node in group.takers:
            is_first = _is_depthwise(node, initial) or _has_rows_of_inputs(node)
            _scale(node.input[1:2], initial, factors, axis=0 if is_first else 1)
    return scaled


def _scale(names: Iterable[str], initial: Mapping[str, Any], factors: Weights, axis: int) -> None:
    """Multiply the *initial* tensors called *names* by *factors* along *axis*."""
    from onnx import numpy_helper

    for name in names:
        weights = numpy_helper.to_array(initial[name])
        shape = [-1 if one == axis else 1 for one in range(weights.ndim)]
        initial[name].CopyFrom(numpy_helper.from_array(weights * factors.reshape(shape), name))


def scale_factors(peaks: Weights, power: float = POWER) -> Weights:
    """Return by channel what its activations are divided by, from the largest of each; 1 for one that is always 0."""
    largest = peaks.max(initial=0)
    if largest == 0:
        return np.ones_like(peaks)
    share = np.where(peaks > 0, np.maximum(peaks / largest, FLOOR), 1)
    factors: Weights = (share**power).astype(np.float32)
    return factors


def tensors_of(model: Any) -> list[str]:
    """Return the names of the tensors whose channels decide on the factors."""
    return [name for group in channel_groups(model) for name in group.tensors]


def channel_groups(model: Any) -> list[ChannelGroup]:
    """Return the groups of *model*: all that makes or takes one of their tensors can be scaled."""
    graph = model.graph
    initial = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    joined = _join(graph.node, initial)
    closed = {joined.find(value.name) for value in [*graph.input, *graph.output]}
    makers: dict[str, list[Node]] = {}
    takers: dict[str, list[Node]] = {}
    rounded: dict[str, list[str]] = {}
    for node in graph.node:
        preserved = joined.preserved(node)
        for position, name in enumerate(node.input):
            if not name or name in initial:
                continue
            group = joined.find(name)
            if node.op_type != "Relu" and name not in rounded.setdefault(group, []):
                rounded[group].append(name)
            if name in preserved:
                continue
            if position == 0 and _can_take(node, initial) and uses[node.input[1]] == 1:
                takers.setdefault(group, []).append(node)
            else:
                closed.add(group)
        for name in node.output:
            group = joined.find(name)
            if node.op_type == "Conv" and all(source in initial and uses[source] == 1 for source in node.input[1:]):
                makers.setdefault(group, []).append(node)
            elif not preserved:
                closed.add(group)
    return [
        ChannelGroup(makers=tuple(made), takers=tuple(takers[group]), tensors=tuple(rounded[group]))
        for group, made in makers.items()
        if group in takers and group not in closed
    ]


class _Joined:
    """Names of tensors, joined where a scale of the channels of one is one of the other."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._preserved: dict[str, tuple[str, ...]] = {}

    def find(self, name: str) -> str:
        """Return the name that stands for all those joined with *name*."""
        while (parent := self._parents.get(name, name)) != name:
            name = parent
        return name

    def join(self, node: Node, sources: Iterable[str]) -> None:
        """Join the *sources* of *node* with its first output."""
        self._preserved[node.output[0]] = tuple(sources)
        for source in self._preserved[node.output[0]]:
            self._parents[self.find(source)] = self.find(node.output[0])

    def preserved(self, node: Node) -> tuple[str, ...]:
        """Return the inputs of *node* that were joined with its output."""
        return self._preserved.get(node.output[0], ())


def _join(nodes: Sequence[Node], initial: Mapping[str, Any]) -> _Joined:
    """Return which tensors share their scale."""
    maker = {name: node for node in nodes for name in node.output}
    joined = _Joined()
    for node in nodes:
        sources = list(_scaled_inputs(node, maker, initial))
        if sources:
            joined.join(node, sources)
    return joined


def _scaled_inputs(node: Node, maker: Mapping[str, Node], initial: Mapping[str, Any]) -> Iterator[str]:
    """Yield the inputs of *node* whose scale is that of its output; none where its channels are not kept so."""
    from onnx import numpy_helper

    def kind(name: str) -> str:
        return str(maker[name].op_type) if name in maker else ""

    if node.op_type in HOMOGENEOUS:
        if not any(name in initial for name in node.input):
            yield from node.input
    elif node.op_type == "ReduceMean":
        axes = numpy_helper.to_array(initial[node.input[1]]) if node.input[1:] and node.input[1] in initial else ()
        if {int(axis) % 4 for axis in axes} == {2, 3}:
            yield node.input[0]
    elif node.op_type in ("Reshape", "Flatten"):
        if kind(node.input[0]) in POOLS:
            yield node.input[0]
    elif node.op_type == "Mul":
        ungated = [name for name in node.input if kind(name) not in GATES and name not in initial]
        if len(ungated) == 1 and len(node.input) == 2 and not any(name in initial for name in node.input):
            yield ungated[0]


def _can_take(node: Node, initial: Mapping[str, Any]) -> bool:
    """Return whether the weights of *node* can undo a scale of its input's channels."""
    if node.op_type not in ("Conv", "Gemm") or node.input[1] not in initial:
        return False
    return node.op_type == "Gemm" or _groups(node) == 1 or _is_depthwise(node, initial)


def _is_depthwise(node: Node, initial: Mapping[str, Any]) -> bool:
    """Return whether each channel of a convolution's input makes one of its output."""
    return node.op_type == "Conv" and 1 < _groups(node) == int(initial[node.input[1]].dims[0])


def _groups(node: Node) -> int:
    return next((int(field.i) for field in node.attribute if field.name == "group"), 1)


def _has_rows_of_inputs(node: Node) -> bool:
    """Return whether the first axis of a matrix product's weights is that of its input."""
    return node.op_type == "Gemm" and not any(field.name == "transB" and field.i for field in node.attribute)
