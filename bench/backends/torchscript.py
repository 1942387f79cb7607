"""TorchScript: traced, frozen, saved, and loaded again as a service would load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, TorchSession, installed, name_precision, refuse_by_table
from bench.records import Case, Scalar
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


class TorchScriptBackend:
    """The frozen trace; `optimize_for_inference` is erratic and would be a variant."""

    name = "torchscript"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}

    def probe(self, device: str) -> Availability:
        """Return the version of torch."""
        return installed("torch", remedy="pip install torch")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case)

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> TorchScriptSession:
        """Export the frozen trace unless it is there, and load it."""
        import torch

        from bench.export import torchscript_file

        set_tf32(case.device, allowed=False)
        path = torchscript_file(network, workdir, case.precision, case.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            module = torch.jit.load(str(path), map_location=case.device).eval()  # type: ignore[no-untyped-call]  # torch's own
        return TorchScriptSession(module, case, path, slots)


class TorchScriptSession(TorchSession):
    """A frozen graph."""

    def __init__(self, module: torch.jit.ScriptModule, case: Case, artifact: Path, slots: int) -> None:
        from bench.export import was_cached

        super().__init__(module, case, slots)
        self._graph = module.graph
        self.artifact_bytes, self.artifact_cached = artifact.stat().st_size, was_cached(artifact)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the dtypes of the weights that the frozen graph holds as constants."""
        import torch

        # torch.jit publishes no types for its graph.
        nodes = self._graph.findAllNodes("prim::Constant")  # type: ignore[attr-defined]
        constants = (node.t("value") for node in nodes if node.hasAttribute("value") and node.kindOf("value") == "t")
        precision, dtypes = name_precision(constants)
        return {"precision": precision, "weight_dtypes": dtypes, "threads": torch.get_num_threads()}


BACKEND = TorchScriptBackend()
