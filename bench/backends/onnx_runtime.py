"""ONNX Runtime: CPU provider, or CUDA provider with bound buffers on a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backends.base import Availability, LocalSession, installed, new_streams, refuse_by_table
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork

WHY = {
    "cpu/bf16": "ONNX Runtime's CPU provider has no bfloat16 Conv kernel",
    "cpu/fp16": "ONNX Runtime's CPU provider casts float16 back to float32",
}


class OnnxRuntimeBackend:
    """The exported graph in ONNX Runtime; no fallback from CUDA to the CPU is allowed."""

    name = "onnx"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "tf32")}

    def probe(self, device: str) -> Availability:
        """Return the version of the installed ONNX Runtime; the CPU wheel cannot serve CUDA."""
        if device == "cuda":
            return installed("onnxruntime-gpu", remedy="pip install onnxruntime-gpu")
        return installed("onnxruntime-gpu", "onnxruntime", remedy="pip install onnxruntime")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case, WHY)

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> CpuSession | CudaSession:
        """Export the graph unless it is there, and build the session.

        Raises:
            RuntimeError: If the provider asked for is not the one that the session got.
        """
        from bench.export import onnx_file

        path = onnx_file(network, workdir, case.precision)
        if case.device == "cuda":
            return CudaSession(path, case, network.output_scale.numel(), slots)
        return CpuSession(path, case)


def build_session(path: Path, case: Case, provider: object) -> Any:  # onnxruntime is untyped
    """Return an InferenceSession of *path* on *provider* alone."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors only; warnings of absent devices go
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    if case.device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    # get_available_providers() lists CUDA on a machine without a GPU; only the session tells.
    wanted = provider[0] if isinstance(provider, tuple) else provider
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"ONNX Runtime gave {session.get_providers()[0]} instead of {wanted}")
    return session


class CpuSession(LocalSession):
    """Runs on the caller's memory; `infer` waits for the result.

    One `InferenceSession` serves every slot: its `run` may be called from several threads, allocates
    the outputs of each call, and all calls share its pool of threads.
    """

    def __init__(self, path: Path, case: Case) -> None:
        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path = path
        self._session = build_session(path, case, "CPUExecutionProvider")

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return outputs (B, K) float32; the images are read in place."""
        import torch

        (outputs,) = self._session.run(["outputs"], {"images": images.numpy()})
        return torch.from_numpy(outputs)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return provider, thread count and the types of the weights in the file."""
        return _evidence(self._session, self._path)


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
    """

    def __init__(self, path: Path, case: Case, output_count: int, slots: int, own_graph: str = "") -> None:
        import torch

        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path = path
        self._case = case
        self._own_graph = own_graph
        # ONNX Runtime takes stream 0 for none, so the streams must not be torch's default one.
        self._streams = new_streams(slots)
        settings = {
            "device_id": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "1" if case.precision == "tf32" else "0",
            "enable_cuda_graph": "1" if own_graph else "0",
        }
        own = [{**settings, "user_compute_stream": str(stream.cuda_stream)} for stream in self._streams]
        self._sessions = [build_session(path, case, ("CUDAExecutionProvider", options)) for options in own]
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
            place = self._images.setdefault(slot, torch.empty_like(images))
            with torch.cuda.stream(self._streams[slot]):
                images = place.copy_(images, non_blocking=True)
        binding.bind_input("images", "cuda", 0, numpy.float32, tuple(images.shape), images.data_ptr())
        binding.bind_output("outputs", "cuda", 0, numpy.float32, tuple(outputs.shape), outputs.data_ptr())
        if torch.cuda.is_current_stream_capturing():
            run_captured(self._sessions[slot], binding)
        else:
            self._sessions[slot].run_with_iobinding(binding)
        return outputs

    def stream_of(self, slot: int) -> torch.cuda.Stream:
        """Return the stream of *slot*."""
        return self._streams[slot]

    def with_own_graph(self, reason: str) -> CudaSession:
        """Return a session in which ONNX Runtime captures, for *reason*; this one is of no more use."""
        slots, count = len(self._outputs), self._outputs[0].shape[1]
        self._bindings.clear()
        self._sessions.clear()
        return CudaSession(self._path, self._case, count, slots, own_graph=reason)

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the streams of all slots, or for that of *slot*."""
        for stream in self._streams if slot is None else [self._streams[slot]]:
            stream.synchronize()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return provider, TF32 setting, thread count and the types of the weights in the file."""
        facts = dict(_evidence(self._sessions[0], self._path))
        tf32 = self._sessions[0].get_provider_options()["CUDAExecutionProvider"]["use_tf32"]
        if facts["precision"] == "fp32" and tf32 == "1":
            facts["precision"] = "tf32"
        graph = {"cuda_graph": "ONNX Runtime's own", "not_captured": self._own_graph} if self._own_graph else {}
        return {**facts, "use_tf32": tf32, **graph}


def run_captured(session: Any, binding: Any) -> None:  # onnxruntime is untyped
    """Run *session* within a capture, where waiting for the stream, as its run does otherwise, is not allowed.

    Raises:
        RuntimeError: If ONNX Runtime cannot.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    try:
        session.run_with_iobinding(binding, options)
    except (EPFail, Fail, RuntimeException) as error:  # none is a RuntimeError
        raise RuntimeError(f"ONNX Runtime: {error}") from error


def _evidence(session: Any, path: Path) -> Mapping[str, Scalar]:  # onnxruntime is untyped
    import onnx

    model = onnx.load(str(path))
    kinds = sorted({onnx.TensorProto.DataType.Name(w.data_type) for w in model.graph.initializer if len(w.dims) > 1})
    precision = {"FLOAT": "fp32", "FLOAT16": "fp16"}.get("+".join(kinds), "mixed")
    return {
        "precision": precision,
        "weight_dtypes": "+".join(kinds),
        "provider": session.get_providers()[0],
        "threads": session.get_session_options().intra_op_num_threads,
    }


BACKEND = OnnxRuntimeBackend()
