"""TorchScript: traced, frozen, saved, and loaded again as a service would load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, TorchSession, installed, name_precision, refuse_by_table
from bench.onednn import describe_products
from bench.records import DEFAULT, Case, Scalar
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


#: What the documentation of `torch.jit.load`, `freeze` and `optimize_for_inference` says; `trace` warns at each call.
DEPRECATED = "since torch 2.5, for torch.compile and torch.export"
#: The runtime variant that passes the frozen graph through `torch.jit.optimize_for_inference`.
OPTIMIZED = "optimized"


class TorchScriptBackend:
    """The frozen trace; what `optimize_for_inference` makes of it is a variant, for it may be slower."""

    name = "torchscript"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}

    def probe(self, device: str) -> Availability:
        """Return the version of torch."""
        return installed("torch", remedy="pip install torch")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case)

    def variants_of(self, case: Case) -> tuple[str, ...]:
        """Return the plain variant and, where it changes the graph, that of `optimize_for_inference`."""
        return (DEFAULT, OPTIMIZED) if (case.device, case.precision) == ("cpu", "fp32") else (DEFAULT,)

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> TorchScriptSession:
        """Export the frozen trace unless it is there, load it, and optimise it if that is the variant.

        What `optimize_for_inference` returns cannot be saved, so it is made at each load.
        """
        import torch

        from bench.export import torchscript_file

        set_tf32(case.device, allowed=False)
        path = torchscript_file(network, workdir, case.precision, case.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            module = torch.jit.load(str(path), map_location=case.device).eval()  # type: ignore[no-untyped-call]  # torch's own
            if case.has_variant(OPTIMIZED):
                module = torch.jit.optimize_for_inference(module)
        return TorchScriptSession(module, case, path, slots)


class TorchScriptSession(TorchSession):
    """A frozen graph."""

    def __init__(self, module: torch.jit.ScriptModule, case: Case, artifact: Path, slots: int) -> None:
        from bench.export import was_cached

        super().__init__(module, case, slots)
        self._graph = module.graph
        self.artifact_bytes, self.artifact_cached = artifact.stat().st_size, was_cached(artifact)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the dtypes of the weights that the frozen graph holds as constants, and on a CPU what oneDNN ran."""
        import torch

        # torch.jit publishes no types for its graph.
        nodes = self._graph.findAllNodes("prim::Constant")  # type: ignore[attr-defined]
        constants = (node.t("value") for node in nodes if node.hasAttribute("value") and node.kindOf("value") == "t")
        precision, dtypes = name_precision(constants)
        facts: dict[str, Scalar] = {
            "precision": precision,
            "weight_dtypes": dtypes,
            "threads": torch.get_num_threads(),
            "deprecated": DEPRECATED,
            **describe_products(self._call, self._case),
        }
        if self._case.has_variant(OPTIMIZED):
            facts.update(_count_mkldnn(self._graph))
        return facts


def _count_mkldnn(graph: torch.Graph) -> Mapping[str, Scalar]:
    """Return how many convolutions of *graph* are oneDNN's own; where none is, nothing was optimised."""
    # As above: torch.jit publishes no types for its graph.
    count = len(graph.findAllNodes("prim::mkldnn_convolution"))  # type: ignore[attr-defined]
    return {"mkldnn_convolutions": count, **({} if count else {"fallback": "nothing was made oneDNN's"})}


BACKEND = TorchScriptBackend()
