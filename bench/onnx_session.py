"""What ONNX Runtime runs: sessions on the CPU, and on CUDA with bound buffers."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.backends.base import LocalSession, new_streams
from bench.export import BATCH
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Convolutions in the graph that a CPU session runs: in integers, and in float.
INTEGER_CONVOLUTIONS, FLOAT_CONVOLUTIONS = ("QLinearConv", "ConvInteger"), ("Conv", "FusedConv")
#: Whether idle threads spin: the key of its setting (onnxruntime_session_options_config_keys.h); the default is yes.
SPINNING = "session.intra_op.allow_spinning"
#: What we call its levels of graph optimisation; `extended` leaves the layout as it is.
LEVELS = {"ORT_ENABLE_ALL": "all", "ORT_ENABLE_EXTENDED": "extended"}


def build_session(
    path: Path,
    case: Case,
    provider: object,
    optimized: Path | None = None,
    settings: Mapping[str, Scalar] | None = None,
) -> Any:  # onnxruntime is untyped
    """Return an InferenceSession of *path* on *provider* alone; write what it makes of the graph to *optimized*.

    Of *settings* it takes `allow_spinning` and `graph_optimization`.
    """
    import onnxruntime

    chosen = settings or {}
    onnxruntime.set_default_logger_severity(3)  # errors only; warnings of absent devices go
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.add_session_config_entry(SPINNING, str(int(bool(chosen.get("allow_spinning", True)))))
    level = next(name for name, meant in LEVELS.items() if meant == chosen.get("graph_optimization", "all"))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.__members__[level]
    options.inter_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if case.device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # With the batch fixed, what computes shapes is folded away; ONNX Runtime would put it on the CPU.
        options.add_free_dimension_override_by_name(BATCH, case.batch_size)
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    # get_available_providers() lists CUDA on a machine without a GPU; only the session tells.
    wanted = provider[0] if isinstance(provider, tuple) else provider
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"ONNX Runtime gave {session.get_providers()[0]} instead of {wanted}")
    return session


class CpuSession(LocalSession):
    """Runs on the caller's memory; `infer` waits for the result.

    One `InferenceSession` serves every slot: its `run` may be called from several threads, allocates
    the outputs of each call, and all calls share its pool of threads. A caller computes too, so that the pool
    is smaller by one thread for each slot after the first. With the setting `streams` a batch
    is divided among as many sessions, a caller each, and so are the threads: callers of one session would
    share its pool unevenly.
    """

    def __init__(
        self,
        path: Path,
        case: Case,
        facts: Mapping[str, Scalar] | None = None,
        settings: Mapping[str, Scalar] | None = None,
        slots: int = 1,
    ) -> None:
        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path, self._facts, self._settings = path, facts or {}, settings or {}
        streams = int(self._settings.get("streams") or 1)
        # With streams the callers are its own, as many as there are, whatever the slots.
        self._more_callers = 0 if streams > 1 else slots - 1
        self._case = replace(case, threads=max(1, case.threads // streams - self._more_callers))
        self._sessions = [
            build_session(path, self._case, "CPUExecutionProvider", settings=self._settings) for _ in range(streams)
        ]
        self._callers = ThreadPoolExecutor(streams) if streams > 1 else None

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return outputs (B, K) float32; the images are read in place."""
        import torch

        if self._callers is None:
            return torch.from_numpy(run_on_cpu(self._sessions[0], images.numpy()))
        parts = [part.numpy() for part in images.chunk(len(self._sessions))]
        return torch.cat([torch.from_numpy(part) for part in self._callers.map(run_on_cpu, self._sessions, parts)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the callers among which a batch is divided."""
        if self._callers:
            self._callers.shutdown()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return provider, thread count and the types of the weights in the file; for int8 what became of the layers.

        Its convolutions are counted in the graph that such a session makes of the file, which another one writes.
        """
        facts = {**_evidence(self._sessions[0], self._path), **self._facts, "streams": len(self._sessions)}
        pools = [session.get_session_options().intra_op_num_threads for session in self._sessions]
        facts["threads"] = sum(pools) + self._more_callers
        entry = self._sessions[0].get_session_options().get_session_config_entry
        facts["allow_spinning"] = entry(SPINNING) == "1"
        facts["graph_optimization"] = LEVELS[self._sessions[0].get_session_options().graph_optimization_level.name]
        if self._case.precision != "int8":
            return facts
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            build_session(self._path, self._case, "CPUExecutionProvider", optimized, self._settings)
            return {**facts, **judge_convolutions(count_operations(optimized))}


def run_on_cpu(session: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:  # onnxruntime is untyped
    """Return what *session* answers to *images*."""
    outputs: NDArray[np.float32]
    (outputs,) = session.run(["outputs"], {"images": images})
    return outputs


def count_operations(path: Path) -> Counter[str]:
    """Return how often each operation occurs in the graph in *path*."""
    import onnx

    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def judge_convolutions(operations: Counter[str]) -> Mapping[str, Scalar]:
    """Return the precision in which most convolutions ran, how many, and whether that is a fallback from int8."""
    integer = sum(operations[name] for name in INTEGER_CONVOLUTIONS)
    total = integer + sum(operations[name] for name in FLOAT_CONVOLUTIONS)
    facts: dict[str, Scalar] = {
        "precision": "int8" if 2 * integer > total else "fp32",
        "convolution_precisions": f"fp32:{total - integer} int8:{integer}",
        "quantize_operations": operations["QuantizeLinear"] + operations["DequantizeLinear"],
    }
    if 2 * integer <= total:
        facts["fallback"] = f"{integer} of {total} convolutions ran in int8"
    return facts


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
        import torch

        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path = path
        self._case = case
        self._own_graph = own_graph
        self._settings = settings or {}
        # ONNX Runtime takes stream 0 for none, so the streams must not be torch's default one.
        self._streams = new_streams(slots)
        options = {
            "device_id": "0",
            "cudnn_conv_algo_search": str(self._settings.get("cudnn_conv_algo_search", "EXHAUSTIVE")),
            "prefer_nhwc": str(int(bool(self._settings.get("prefer_nhwc", False)))),
            "use_tf32": "1" if case.precision == "tf32" else "0",
            "enable_cuda_graph": "1" if own_graph else "0",
        }
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
        return CudaSession(self._path, self._case, count, slots, own_graph=reason, settings=self._settings)

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the streams of all slots, or for that of *slot*."""
        for stream in self._streams if slot is None else [self._streams[slot]]:
            stream.synchronize()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return provider, TF32 setting, thread count and the types of the weights in the file."""
        facts = dict(_evidence(self._sessions[0], self._path))
        chosen = self._sessions[0].get_provider_options()["CUDAExecutionProvider"]
        facts |= {name: chosen.get(name) for name in ("cudnn_conv_algo_search", "prefer_nhwc")}
        tf32 = chosen["use_tf32"]
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
