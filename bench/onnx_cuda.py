"""What ONNX Runtime runs on CUDA: buffers that are bound, a stream of each slot's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backends.base import LocalSession, new_streams
from bench.onnx_session import build_session, describe_session
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch


class CudaSession(LocalSession):
    """A slot has an `InferenceSession`, a stream, a binding and an output buffer; TF32 set or cleared explicitly.

    A stream that the caller gives belongs to a whole `InferenceSession`, so two slots that shared one
    would wait for each other; the weights are on the GPU once a slot.

    Args:
        path: The exported graph.
        case: What is run.
        output_count: K.
        slots: Requests that may be in flight at once.
        own_graph: Why ONNX Runtime captures the graph itself; empty where it does not. It replays it on
            the addresses of its first run, so that images are copied into a buffer of the slot's own.
        settings: Of the provider, by name.
    """

    def __init__(
        self,
        path: Path,
        case: Case,
        output_count: int,
        slots: int,
        own_graph: str = "",
        settings: Mapping[str, Scalar] | None = None,
    ) -> None:
        import onnxruntime
        import torch

        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path = path
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._case = case
        self._own_graph = own_graph
        self._settings = settings or {}
        # ONNX Runtime takes stream 0 for none, so the streams must not be torch's default one.
        self._streams = new_streams(slots)
        load_libraries()
        options = provider_options(case.precision, self._settings, captures=bool(own_graph))
        own = [{**options, "user_compute_stream": str(stream.cuda_stream)} for stream in self._streams]
        self._sessions = [build_session(path, case, ("CUDAExecutionProvider", one)) for one in own]
        shape = (case.batch_size, output_count)
        self._outputs = [torch.empty(shape, device="cuda") for _ in range(slots)]
        self._bindings = [session.io_binding() for session in self._sessions]
        self._images: dict[int, torch.Tensor] = {}

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Enqueue on the slot's stream; the outputs are the slot's own buffer (B, K)."""
        import numpy
        import torch

        binding, outputs = self._bindings[slot], self._outputs[slot]
        self._streams[slot].wait_stream(torch.cuda.current_stream())
        if self._own_graph:
            if slot not in self._images:
                self._images[slot] = torch.empty_like(images)
            place = self._images[slot]
            with torch.cuda.stream(self._streams[slot]):
                images = place.copy_(images, non_blocking=True)
        binding.bind_input("images", "cuda", 0, numpy.float32, tuple(images.shape), images.data_ptr())
        binding.bind_output("outputs", "cuda", 0, numpy.float32, tuple(outputs.shape), outputs.data_ptr())
        enqueue(self._sessions[slot], binding, self._run_options)
        return outputs

    def stream_of(self, slot: int) -> torch.cuda.Stream:
        """Return the stream of *slot*."""
        return self._streams[slot]

    def with_own_graph(self, reason: str) -> CudaSession:
        """Return a session in which ONNX Runtime captures, for *reason*; this one is of no more use."""
        slots, count = len(self._outputs), self._outputs[0].shape[1]
        self._bindings.clear()
        self._sessions.clear()
        return CudaSession(self._path, self._case, count, slots, own_graph=reason, settings=self._settings)

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the streams of all slots, or for that of *slot*."""
        for stream in self._streams if slot is None else [self._streams[slot]]:
            stream.synchronize()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return provider, TF32 setting, thread count and the types of the weights in the file."""
        facts = dict(describe_session(self._sessions[0], self._path))
        chosen = self._sessions[0].get_provider_options()["CUDAExecutionProvider"]
        facts |= {name: chosen.get(name) for name in ("cudnn_conv_algo_search", "prefer_nhwc")}
        tf32 = chosen["use_tf32"]
        if facts["precision"] == "fp32" and tf32 == "1":
            facts["precision"] = "tf32"
        graph = {"cuda_graph": "ONNX Runtime's own", "not_captured": self._own_graph} if self._own_graph else {}
        return {**facts, "use_tf32": tf32, **graph}


def provider_options(precision: str, settings: Mapping[str, Scalar], *, captures: bool) -> dict[str, str]:
    """Return what the provider is told, but for the stream.

    Args:
        precision: Of the case.
        settings: By name; what is not named is at its default.
        captures: Whether ONNX Runtime is to make a CUDA graph of its own.
    """
    return {
        "device_id": "0",
        "cudnn_conv_algo_search": str(settings.get("cudnn_conv_algo_search", "EXHAUSTIVE")),
        "prefer_nhwc": str(int(bool(settings.get("prefer_nhwc", False)))),
        # Without it ONNX Runtime rules out every kernel on tensor cores, those of fp16 too (conv.cc).
        "use_tf32": "0" if precision == "fp32" else "1",
        "enable_cuda_graph": str(int(captures)),
    }


def enqueue(session: Any, binding: Any, options: Any) -> None:  # onnxruntime is untyped
    """Run *session* without waiting for its stream at the end, as it does otherwise, and as no capture allows.

    Raises:
        RuntimeError: If ONNX Runtime cannot.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

    try:
        session.run_with_iobinding(binding, options)
    except (EPFail, Fail, RuntimeException) as error:  # none is a RuntimeError
        raise RuntimeError(f"ONNX Runtime: {error}") from error


@cache
def load_libraries() -> None:
    """Map the CUDA libraries of ONNX Runtime's provider, from the wheels that torch brings.

    It does not look there itself; torch maps those that it needs, and cuRAND need not be among them.
    """
    import onnxruntime
    import torch

    if torch.version.cuda and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
