"""Eager PyTorch, channels last: the network as it is, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import (
    Availability,
    TorchSession,
    Tunable,
    installed,
    name_precision,
    name_tf32,
    refuse_by_table,
)
from bench.onednn import describe_products
from bench.records import Case, Scalar
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


class EagerBackend(Tunable):
    """PyTorch without compilation."""

    name = "eager"
    precisions: Mapping[str, tuple[str, ...]] = {
        "cpu": ("fp32", "bf16"),
        "cuda": ("fp32", "fp16", "tf32", "bf16"),
    }

    def probe(self, device: str) -> Availability:
        """Return the version of torch."""
        return installed("torch", remedy="pip install torch")

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case)

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        """Return the memory formats, and on CUDA whether cuDNN times its algorithms at the first call."""
        formats: dict[str, tuple[Scalar, ...]] = {"memory_format": ("channels_last", "contiguous")}
        return formats if case.device == "cpu" else {**formats, "cudnn_benchmark": (False, True)}

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> EagerSession:
        """Cast and move *network*; nothing is built and no file is written."""
        import torch

        from bench.export import compute_dtype

        set_tf32(case.device, allowed=case.precision == "tf32")
        torch.backends.cudnn.benchmark = bool(self._settings.get("cudnn_benchmark", False))
        ready = network.set_compute_dtype(compute_dtype(case.precision)).to(case.device)
        if self._settings.get("memory_format", "channels_last") == "channels_last":
            ready = ready.to(memory_format=torch.channels_last)
        return EagerSession(ready, case, slots)


class EagerSession(TorchSession):
    """A module run layer by layer."""

    def __init__(self, module: torch.nn.Module, case: Case, slots: int) -> None:
        super().__init__(module, case, slots)
        self._module = module

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the dtypes of the weights, the TF32 flags, torch's thread count, and on a CPU what oneDNN ran."""
        import torch

        precision, dtypes = name_precision(self._module.parameters())
        return {
            "precision": name_tf32(precision, self._case.device),
            "weight_dtypes": dtypes,
            "threads": torch.get_num_threads(),
            "memory_format": name_memory_format(self._module),
            **describe_products(self._call, self._case),
            **({"cudnn_benchmark": torch.backends.cudnn.benchmark} if self._case.device == "cuda" else {}),
        }


def name_memory_format(module: torch.nn.Module) -> str:
    """Return how the weights of *module* of four dimensions lie: ``channels_last`` if all do, or ``contiguous``.

    By their strides, as torch chooses its kernels: depthwise and 1 x 1 weights lie in memory either way.
    """
    shapes = [(weight.shape, weight.stride()) for weight in module.parameters() if weight.dim() == 4]
    is_last = all(strides == (c * h * w, 1, c * w, c) for (_, c, h, w), strides in shapes)
    return "channels_last" if is_last else "contiguous"


BACKEND = EagerBackend()
