"""OpenVINO on the CPU, from the same ONNX file, its precision hint set and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backends.base import Availability, LocalSession, Tunable, divisions, installed, refuse_by_table
from bench.quantize import FLOATS, MIXED, OPENVINO, explain_floats, quantized_file, variants_of
from bench.records import Case, Scalar, join_variants

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork

#: int8 lives in the graph; the hint is for what is not quantised.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
#: The runtime variant of int8 whose layers that are kept run in bfloat16.
IN_BF16 = "bf16"
#: What the plugin calls the precision of a layer that multiplies 8-bit integers.
INTEGERS = ("u8", "i8")


@cache
def the_core() -> Any:  # openvino is untyped
    """Return the one `openvino.Core` of this process, which is never given up.

    The CPU plugin of a core gives its thread another signal stack and frees it with the core
    (`SigAltStackSetup`, sigstack_manager.cpp, 2026.4). Two cores that end in the order of their
    making leave the thread with a stack that is gone: the next signal that Python handles, the
    end of a child for one, then ends the process by SIGSEGV without a word.
    """
    import openvino

    return openvino.Core()


class OpenVinoBackend(Tunable):
    """OpenVINO compiles for bfloat16 by itself where it can, so the hint is always explicit."""

    name = "openvino"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16", "int8")}

    def probe(self, device: str) -> Availability:
        """Return the version of OpenVINO."""
        return installed("openvino", remedy="pip install 'lensing-bench[openvino]'")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        why = {"cpu/fp16": "OpenVINO's CPU plugin is slower in float16 than in float32"}
        return refuse_by_table(self, case, why)

    def variants_of(self, case: Case) -> tuple[str, ...]:
        """Return the plain variant and, of int8, the mixed one, with what it keeps in fp32 or in bf16."""
        names = variants_of(case)
        return (*names, join_variants(MIXED, IN_BF16)) if MIXED in names else names

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        """Return into how many requests, a stream each, a batch is divided, and whether threads stay on a core."""
        # None leaves it to the plugin, whose choice depends on the system and the kind of cores.
        return {"streams": divisions(case), "cpu_pinning": (None, True, False)}

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> OpenVinoSession:
        """Export the graph unless it is there, fix its batch and compile it."""
        from bench.export import onnx_file

        facts: Mapping[str, Scalar] = {}
        if case.precision == "int8":
            quantized = quantized_file(network, workdir, OPENVINO, case)
            path, facts = quantized.path, quantized.facts
            if case.has_variant(IN_BF16):
                facts = {("kept_bf16" if name == "kept_fp32" else name): value for name, value in facts.items()}
        else:
            path = onnx_file(network, workdir, "fp32")
        core = the_core()
        model = core.read_model(path)
        shape = model.input(0).partial_shape
        streams = int(self._settings.get("streams") or 1)
        shape[0] = case.batch_size // streams
        model.reshape(shape)
        options = {
            "INFERENCE_PRECISION_HINT": hint_of(case),
            "INFERENCE_NUM_THREADS": case.threads,
            "NUM_STREAMS": max(slots, streams),
            "PERFORMANCE_HINT": "LATENCY" if max(slots, streams) == 1 else "THROUGHPUT",
        }
        if self._settings.get("cpu_pinning") is not None:
            options["ENABLE_CPU_PINNING"] = bool(self._settings["cpu_pinning"])
        compiled = core.compile_model(model, "CPU", options)
        return OpenVinoSession(compiled, path, case, slots, facts, streams)


class OpenVinoSession(LocalSession):
    """One inference request a slot, or one for each part of a batch that is divided among *streams*.

    It writes into its part of the slot's own output buffer.
    """

    def __init__(
        self,
        compiled: Any,  # openvino is untyped
        path: Path,
        case: Case,
        slots: int,
        facts: Mapping[str, Scalar],
        streams: int = 1,
    ) -> None:
        import numpy
        import openvino
        import torch

        from bench.export import was_cached

        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._compiled, self._case, self._facts = compiled, case, facts
        self._requests = [[compiled.create_infer_request() for _ in range(streams)] for _ in range(slots)]
        part, outputs = tuple(compiled.output(0).shape)
        buffers = [numpy.empty((part * streams, outputs), numpy.float32) for _ in range(slots)]
        for requests, buffer in zip(self._requests, buffers, strict=True):
            for request, rows in zip(requests, numpy.split(buffer, streams), strict=True):
                request.set_output_tensor(openvino.Tensor(rows, shared_memory=True))
        self._outputs = [torch.from_numpy(buffer) for buffer in buffers]
        self._waits = slots * streams == 1

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Start the slot's requests on the caller's memory; with one in all, wait for it."""
        import openvino

        requests = self._requests[slot]
        if self._waits:
            requests[0].set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
            requests[0].infer()
            return self._outputs[slot]
        for request, part in zip(requests, images.chunk(len(requests)), strict=True):
            request.set_input_tensor(openvino.Tensor(part.numpy(), shared_memory=True))
            request.start_async()
        return self._outputs[slot]

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for every request that was started, or for that of *slot*."""
        if not self._waits:
            for requests in self._requests if slot is None else [self._requests[slot]]:
                for request in requests:
                    request.wait()

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the precision that the plugin accepted and those of the layers it runs."""
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        layers = Counter(
            operation.get_rt_info()["runtimePrecision"].astype(str)
            for operation in self._compiled.get_runtime_model().get_ops()
            if "Convolution" in operation.get_rt_info()["layerType"].astype(str)
        )
        return {
            **judge_convolutions(
                layers, hint, self._case.precision, hint_of(self._case), floats=int(self._facts.get(FLOATS) or 0)
            ),
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": self._compiled.get_property("NUM_STREAMS"),
            "requests": len(self._requests[0]),
            "cpu_pinning": self._compiled.get_property("ENABLE_CPU_PINNING"),
            **self._facts,
        }


def hint_of(case: Case) -> str:
    """Return the precision of what is not quantised, as the plugin calls it."""
    return HINTS["bf16" if case.has_variant(IN_BF16) else case.precision]


def judge_convolutions(
    layers: Counter[str], hint: str, asked: str, kept: str = "f32", floats: int = 0
) -> Mapping[str, Scalar]:
    """Return the precision that ran, those of all convolutions, and whether that is a fallback.

    Args:
        layers: Convolutions by the precision that the plugin gave them.
        hint: What the plugin accepted as hint.
        asked: Precision of the case; int8 ran if all convolutions did that were to, or most.
        kept: Precision of those of an int8 case that are no integers.
        floats: How many these are in the file.
    """
    integer = sum(layers[name] for name in INTEGERS)
    in_floats = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}.get(hint, hint)
    unmeant = explain_floats(integer, layers.total(), floats)
    is_int8 = asked == "int8" and not unmeant
    facts: dict[str, Scalar] = {
        "precision": "int8" if is_int8 or 2 * integer > layers.total() else in_floats,
        "convolution_precisions": " ".join(f"{name}:{count}" for name, count in sorted(layers.items())),
    }
    if asked == "int8":
        fallback = unmeant
        if not fallback and layers[kept] < layers.total() - integer:
            fallback = f"{layers[kept]} of the {layers.total() - integer} convolutions kept ran in {kept}"
    else:
        is_other = layers[hint] < layers.total() or not layers
        fallback = f"{layers[hint]} of {layers.total()} convolutions ran in {in_floats}" if is_other else ""
    if fallback:
        facts["fallback"] = fallback
    return facts


BACKEND = OpenVinoBackend()
