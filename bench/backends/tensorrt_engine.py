"""TensorRT: an engine built from the exported graph for one batch size, on NVIDIA GPUs alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bench.backends.base import Availability, LocalSession, Tunable, has_nvidia_driver, installed, refuse_by_table
from bench.quantize import TENSORRT, quantized_file, variants_of
from bench.records import BUILD, Case, Scalar
from bench.tensorrt_build import (
    DEFAULT_LEVEL,
    BuildArguments,
    Engine,
    EngineHost,
    collecting_logger,
    engine_host,
    failure,
    find_or_build,
)

if TYPE_CHECKING:
    import tensorrt as trt
    import torch

    from lensing_models.network import LensNetwork

WHY = {
    "cpu": "TensorRT runs on NVIDIA GPUs only (device cuda)",
}
NO_DRIVER = "no NVIDIA driver on this machine, and TensorRT runs on NVIDIA GPUs only"
#: `setTensorAddress` wants "sufficient alignment" (NvInferRuntime.h); cudaMalloc promises this much.
ALIGNMENT_BYTES = 256

# How the inspector spells a type: TensorRT 11 `Half`, TensorRT 10 `Half` or `Channel major FP16 format ...`.
SPELLINGS = (
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half"),
    ("fp8", r"fp8"),
    ("int8", r"\bint8"),
    ("fp32", r"fp32|float"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
)


class TensorRTBackend(Tunable):
    """The exported graph in a TensorRT engine; the engine is kept in the work folder and reused."""

    name = "trt"
    builds_differ = True
    precisions: Mapping[str, tuple[str, ...]] = {"cuda": ("fp32", "tf32", "fp16", "int8")}

    def probe(self, device: str) -> Availability:
        """Return the version of TensorRT, or all that is missing; neither TensorRT nor a GPU is touched."""
        found = installed("tensorrt", "tensorrt-cu13", "tensorrt-cu12", remedy="pip install 'lensing-bench[trt]'")
        if has_nvidia_driver():
            return found
        return Availability(reason=f"{NO_DRIVER}; {found.reason}" if found.reason else NO_DRIVER)

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case, WHY)

    def variants_of(self, case: Case) -> tuple[str, ...]:
        """Return the plain variant and, of a network that int8 costs much, the mixed one."""
        return variants_of(case)

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        """Return how long the builder searches; 3 is TensorRT's default, 5 its most."""
        return {"optimization_level": (DEFAULT_LEVEL, 5)}

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> TensorRTSession:
        """Export the graph and build its engine, each unless it is there, and load the engine.

        Raises:
            RuntimeError: If there is no driver, or TensorRT cannot build or load the engine.
        """
        if not has_nvidia_driver():  # trt.Runtime would be made, and its first call would crash
            raise RuntimeError(NO_DRIVER)
        from bench.export import onnx_file

        host = engine_host()
        arguments = BuildArguments(
            batch_size=case.batch_size,
            tf32=case.precision == "tf32",
            optimization_level=int(self._settings.get("optimization_level") or DEFAULT_LEVEL),
            build=int(self._settings.get(BUILD) or 0),
        )
        facts: dict[str, Scalar] = {"optimization_level": arguments.optimization_level}
        if case.precision == "int8":
            quantized = quantized_file(network, workdir, TENSORRT, case)
            path, facts = quantized.path, {**facts, **quantized.facts}
        else:
            path = onnx_file(network, workdir, precision=case.precision)
        return TensorRTSession(find_or_build(path, arguments, host, workdir), host, case, slots, facts)


@dataclass(kw_only=True, slots=True)
class Slot:
    """What one request in flight needs for itself: context, stream, buffers."""

    context: trt.IExecutionContext
    stream: torch.cuda.Stream
    outputs: torch.Tensor
    images: torch.Tensor | None = None
    staging: torch.Tensor | None = None


class TensorRTSession(LocalSession):
    """An engine with one context, stream and output buffer a slot.

    The engine reads the caller's images in place, so they must live and stay unchanged until
    `synchronize`. Only images at an address that TensorRT does not take (a view into a larger
    tensor) are copied first, on the slot's stream.
    """

    def __init__(
        self, engine: Engine, host: EngineHost, case: Case, slots: int, facts: Mapping[str, Scalar] | None = None
    ) -> None:
        import tensorrt as trt

        self.artifact_bytes, self.artifact_cached = len(engine.plan), engine.reused
        self._engine_facts: dict[str, Scalar] = {"engine_key": engine.key, "engine_reused": engine.reused}
        if engine.had_timings is not None:
            self._engine_facts["timing_cache"] = "used" if engine.had_timings else "empty"
        self._engine_facts.update(facts or {})
        self._host = host
        self._case = case
        self._errors: list[str] = []
        self._logger: trt.ILogger = collecting_logger(self._errors)
        try:
            self._runtime: trt.Runtime = trt.Runtime(self._logger)
        except TypeError as error:  # the bindings' word for a null pointer
            raise failure("create a runtime", self._errors) from error
        self._engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine(engine.plan)
        if self._engine is None:
            raise failure("load the engine", self._errors)
        self._shape = (case.batch_size, *tuple(self._engine.get_tensor_shape("images"))[1:])
        self._slots: list[Slot] = [self._new_slot() for _ in range(slots)]

    def _new_slot(self) -> Slot:
        import tensorrt as trt
        import torch

        context: trt.IExecutionContext = self._engine.create_execution_context()
        if context is None:
            raise failure("create an execution context", self._errors)
        self._require(context.set_input_shape("images", self._shape), f"take images of shape {self._shape}")
        if self._engine.get_tensor_dtype("outputs") != trt.float32:
            raise failure("give float32 outputs", ["the graph ends in another type"])
        outputs = torch.empty(tuple(context.get_tensor_shape("outputs")), device=self._case.device)
        self._require(context.set_tensor_address("outputs", outputs.data_ptr()), "bind the outputs")
        # TensorRT adds device-wide waits to work on the default stream, so each slot has its own.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return Slot(context=context, stream=stream, outputs=outputs)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Enqueue on the slot's stream, behind the caller's current one; return its buffer (B, K)."""
        import torch

        place: Slot = self._slots[slot]
        if images.shape != self._shape:
            raise ValueError(f"images of shape {tuple(images.shape)} for an engine of {self._shape}; pad the batch")
        place.stream.wait_stream(torch.cuda.current_stream())
        place.images = images if images.data_ptr() % ALIGNMENT_BYTES == 0 else _stage(images, place)
        self._require(place.context.set_tensor_address("images", place.images.data_ptr()), "bind the images")
        self._require(place.context.execute_async_v3(place.stream.cuda_stream), "enqueue")
        return place.outputs

    def stream_of(self, slot: int) -> torch.cuda.Stream:
        """Return the stream of *slot*."""
        place: Slot = self._slots[slot]
        return place.stream

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the streams of all slots, or for that of *slot*."""
        waited: list[Slot] = self._slots if slot is None else [self._slots[slot]]
        for place in waited:
            place.stream.synchronize()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the types that the layers read, the engine's key and what it was built by."""
        import tensorrt as trt

        inspector: trt.EngineInspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._slots[0].context
        report = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        layers = count_layers(report)
        facts: dict[str, Scalar] = {
            "precision": ran_precision(layers, self._case.precision),
            "threads": None,  # the work is on the GPU
            "layer_precisions": " ".join(f"{name}:{count}" for name, count in sorted(layers.items())),
            **self._engine_facts,
            "tensorrt": self._host.tensorrt,
        }
        fallback = find_fallback(layers, self._case.precision, self._host.compute_capability)
        if self._case.precision == "int8":
            convolutions = count_layers(report, kind="convolution")
            facts["convolution_precisions"] = " ".join(f"{name}:{n}" for name, n in sorted(convolutions.items()))
            fallback = fallback or find_float_convolutions(convolutions)
        return {**facts, "fallback": fallback} if fallback else facts

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise failure(what, self._errors)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait, then free the contexts before the engine and the engine before its runtime."""
        if error is None:
            self.synchronize()
        self._slots.clear()
        self._engine = None
        self._runtime = None


def _stage(images: torch.Tensor, place: Slot) -> torch.Tensor:
    """Return an aligned copy of *images*, made on the stream of *place* in a buffer of its own."""
    import torch

    if place.staging is None:
        place.staging = torch.empty_like(images, memory_format=torch.contiguous_format)
    with torch.cuda.stream(place.stream):
        return place.staging.copy_(images)


def count_layers(report: str, kind: str = "") -> Counter[str]:
    """Return how many layers read each type, most frequent first, from the inspector's JSON.

    A layer counts under the type that it reads: what converts from float32 to float16 on the way in
    is no float16 arithmetic. A layer without inputs or of unknown type does not count.

    Args:
        report: The inspector's JSON.
        kind: What must occur in a layer's ``LayerType`` or ``ParameterType``, in small letters.
    """
    layers = [layer for layer in json.loads(report).get("Layers", []) if isinstance(layer, dict)]
    chosen = [layer for layer in layers if kind in f"{layer.get('LayerType')} {layer.get('ParameterType')}".lower()]
    tensors = [layer["Inputs"][0] for layer in chosen if layer.get("Inputs")]
    # TensorRT 11 split the field in two (migration guide 10.x to 11.x, IEngineInspector).
    spelled = [tensor.get("DataType") or tensor.get("Format/Datatype", "") for tensor in tensors]
    return Counter(name for name in map(layer_type, spelled) if name)


def layer_type(spelled: str) -> str:
    """Return the precision that the inspector means by *spelled*, empty if it is none known."""
    return next((name for name, pattern in SPELLINGS if re.search(pattern, spelled, re.IGNORECASE)), "")


def ran_precision(layers: Counter[str], asked: str) -> str:
    """Return the type that most layers read; TF32 is fp32 that the engine was allowed to round.

    int8 is what an engine is called in which any layer reads it: `find_float_convolutions` asks for more.
    """
    if asked == "int8" and layers["int8"]:
        return asked
    floats = Counter({name: count for name, count in layers.items() if name in ("fp32", "fp16", "bf16")})
    if not floats:
        return "unknown"
    most = floats.most_common(1)[0][0]
    return "tf32" if most == "fp32" and asked == "tf32" else most


def find_fallback(layers: Counter[str], asked: str, compute_capability: tuple[int, int]) -> str:
    """Return which precision was silently not used, or an empty text."""
    if asked in ("fp16", "int8") and layers and not layers[asked]:
        return f"no layer reads {asked}"
    if asked == "tf32" and compute_capability < (8, 0):  # TF32 came with Ampere
        return "no TF32 below compute capability 8.0"
    return ""


def find_float_convolutions(convolutions: Counter[str]) -> str:
    """Return how few of an int8 engine's *convolutions* read int8, or an empty text if most do or none is known."""
    integer, total = convolutions["int8"], convolutions.total()
    return f"{integer} of {total} convolutions read int8" if 2 * integer <= total and total else ""


BACKEND = TensorRTBackend()
