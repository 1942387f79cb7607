"""ONNX Runtime: CPU provider, or CUDA provider with bound buffers on a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, Tunable, divisions, installed, refuse_by_table
from bench.onnx_cuda import CudaSession
from bench.onnx_session import CpuSession
from bench.quantize import ONNX_RUNTIME, quantized_file, variants_of
from bench.records import Case, Scalar

if TYPE_CHECKING:
    from lensing_models.network import LensNetwork

WHY = {
    "cpu/bf16": "ONNX Runtime's CPU provider has no bfloat16 Conv kernel",
    "cpu/fp16": "ONNX Runtime's CPU provider casts float16 back to float32",
    "cuda/int8": "ONNX Runtime's CUDA provider has no kernel for quantised convolution",
}


class OnnxRuntimeBackend(Tunable):
    """The exported graph in ONNX Runtime; no fallback from CUDA to the CPU is allowed."""

    name = "onnx"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16", "tf32")}

    def probe(self, device: str) -> Availability:
        """Return the version of the installed ONNX Runtime; the CPU wheel cannot serve CUDA."""
        if device == "cuda":
            return installed("onnxruntime-gpu", remedy="pip install onnxruntime-gpu")
        return installed("onnxruntime-gpu", "onnxruntime", remedy="pip install onnxruntime")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case, WHY)

    def variants_of(self, case: Case) -> tuple[str, ...]:
        """Return the plain variant and, of a network that int8 costs much, the mixed one."""
        return variants_of(case)

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        """Return what ONNX Runtime lets choose.

        On a CPU whether idle threads spin, how far the graph is optimised (`extended` leaves the layout as it is),
        and into how many requests, run side by side, a batch is divided; on CUDA how cuDNN's algorithm is chosen,
        and the layout.
        """
        if case.device == "cuda":
            return {"cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC"), "prefer_nhwc": (False, True)}
        return {
            "allow_spinning": (True, False),
            "graph_optimization": ("all", "extended"),
            "streams": divisions(case),
        }

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> CpuSession | CudaSession:
        """Export the graph unless it is there, and build the session.

        Raises:
            RuntimeError: If the provider asked for is not the one that the session got.
        """
        from bench.export import onnx_file

        if case.precision == "int8":
            quantized = quantized_file(network, workdir, ONNX_RUNTIME, case)
            return CpuSession(quantized.path, case, quantized.facts, self._settings, slots)
        path = onnx_file(network, workdir, case.precision)
        if case.device == "cuda":
            return CudaSession(path, case, network.output_scale.numel(), slots, settings=self._settings)
        return CpuSession(path, case, settings=self._settings, slots=slots)


BACKEND = OnnxRuntimeBackend()
