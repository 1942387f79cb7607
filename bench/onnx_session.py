"""What ONNX Runtime runs on the CPU, and what its sessions on CUDA share with that."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.backends.base import LocalSession
from bench.export import BATCH
from bench.quantize import FLOATS, explain_floats
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
    # With the batch fixed, what computes shapes is folded away; on CUDA ONNX Runtime would put it on the CPU.
    options.add_free_dimension_override_by_name(BATCH, case.batch_size)
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
        threads = max(1, case.threads // streams - self._more_callers)
        self._case = replace(case, threads=threads, batch_size=case.batch_size // streams)
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
        facts = {**describe_session(self._sessions[0], self._path), **self._facts, "streams": len(self._sessions)}
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
            kept = int(self._facts.get(FLOATS) or 0)
            return {**facts, **judge_convolutions(count_operations(optimized), kept)}


def run_on_cpu(session: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:  # onnxruntime is untyped
    """Return what *session* answers to *images*."""
    outputs: NDArray[np.float32]
    (outputs,) = session.run(["outputs"], {"images": images})
    return outputs


def count_operations(path: Path) -> Counter[str]:
    """Return how often each operation occurs in the graph in *path*."""
    import onnx

    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def judge_convolutions(operations: Counter[str], kept: int = 0) -> Mapping[str, Scalar]:
    """Return int8 if all ran so that were to, else that in which most did; how many; whether it is a fallback.

    Args:
        operations: Of the graph that ran, by kind.
        kept: Convolutions that the file keeps in float.
    """
    integer = sum(operations[name] for name in INTEGER_CONVOLUTIONS)
    total = integer + sum(operations[name] for name in FLOAT_CONVOLUTIONS)
    floats = explain_floats(integer, total, kept)
    facts: dict[str, Scalar] = {
        "precision": "int8" if not floats or 2 * integer > total else "fp32",
        "convolution_precisions": f"fp32:{total - integer} int8:{integer}",
        "quantize_operations": operations["QuantizeLinear"] + operations["DequantizeLinear"],
    }
    if floats:
        facts["fallback"] = floats
    return facts


def describe_session(session: Any, path: Path) -> Mapping[str, Scalar]:  # onnxruntime is untyped
    """Return provider, thread count and the types of the weights in the file *path* of *session*."""
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
