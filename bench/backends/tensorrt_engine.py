"""TensorRT: an engine built from the exported graph for one batch size, on NVIDIA GPUs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bench.backends.base import Availability, LocalSession, Tunable, has_nvidia_driver, installed, refuse_by_table
from bench.quantize import FLOATS, TENSORRT, quantized_file, variants_of
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
    lacks_kernel,
)
from bench.tensorrt_report import count_layers, count_tf32, find_fallback, find_float_convolutions, ran_precision

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
        if case.precision != "int8":
            path = onnx_file(network, workdir, precision=case.precision)
            return TensorRTSession(find_or_build(path, arguments, host, workdir), host, case, slots, facts)
        quantized = quantized_file(network, workdir, TENSORRT, case)
        try:
            engine = find_or_build(quantized.path, arguments, host, workdir)
        except RuntimeError as error:
            if not lacks_kernel(str(error)):
                raise
            # Of depthwise convolutions in 8 bits with HardSwish or SiLU behind, some versions have none
            # (github.com/NVIDIA/TensorRT/issues/3385).
            quantized = quantized_file(network, workdir, TENSORRT, case, keep_depthwise=True)
            engine = find_or_build(quantized.path, arguments, host, workdir)
            facts["kept_unbuildable"] = "depthwise convolutions"
        return TensorRTSession(engine, host, case, slots, {**facts, **quantized.facts})


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
        self._engine_facts: dict[str, Scalar] = {"engine_key": engine.key}
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
        tf32, named = count_tf32(report)
        facts["tf32_kernels"] = f"{tf32} of {named}"
        fallback = find_fallback(layers, self._case.precision, self._host.compute_capability, tf32)
        if self._case.precision == "int8":
            convolutions = count_layers(report, kind="convolution")
            facts["convolution_precisions"] = " ".join(f"{name}:{n}" for name, n in sorted(convolutions.items()))
            kept = int(self._engine_facts.get(FLOATS) or 0)
            fallback = fallback or find_float_convolutions(convolutions, kept)
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


BACKEND = TensorRTBackend()
