"""AOTInductor: the exported network compiled ahead of time into a package, which is loaded without compiling."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, TorchSession, name_tf32, refuse_by_table
from bench.export import was_cached
from bench.inductor_build import aoti_package, load_package, probe_compiler
from bench.onednn import describe_products
from bench.records import GRAPH, Case, Scalar
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    from torch._C._aoti import AOTIModelPackageLoader

    from lensing_models.network import LensNetwork

#: How the code in a package declares its constants (torch/_inductor/codegen/cpp_wrapper_cpu.py, torch 2.14).
CONSTANT = re.compile(r"constants_info_\[(\d+)\]\.(dtype|layout|shape) = (?:static_cast<int32_t>\()?([^;]*?)\)?;")
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class AotiBackend:
    """A package for one batch size and number of threads, kept in the work folder and reused."""

    name = "aoti"
    compiles_long = True
    precisions: Mapping[str, tuple[str, ...]] = {
        "cpu": ("fp32", "bf16"),
        "cuda": ("fp32", "fp16", "tf32", "bf16"),
    }

    def probe(self, device: str) -> Availability:
        """Return the version of torch; its compiler needs one for C++, and on CUDA triton and the toolkit."""
        return probe_compiler(device, has_bindings=False, needs_toolkit=True)

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case)

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> AotiSession:
        """Export and compile *network* unless its package is there, and load that.

        Raises:
            RuntimeError: If the export or the compiler fails.
        """
        path = aoti_package(network, case, workdir)
        set_tf32(case.device, allowed=case.precision == "tf32")
        # torch makes one runner alone for what is captured. Graphs share it: they are made one after the other, and
        # have their own memory.
        runners = 1 if case.has_variant(GRAPH) else slots
        return AotiSession(path, load_package(path, case, workdir, runners), case, slots, runners)


class AotiSession(TorchSession):
    """A loaded package; with one runner a slot they share the constants and wait for no one."""

    def __init__(self, path: Path, loader: AOTIModelPackageLoader, case: Case, slots: int, runners: int) -> None:
        super().__init__(lambda images: loader.run([images])[0], case, slots)
        self.artifact_bytes, self.artifact_cached = path.stat().st_size, was_cached(path)
        self._path, self._runners = path, runners

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the types of the constants in the package, what its code calls, and torch's thread count."""
        import torch

        code = "\n".join(read_code(self._path))
        dtypes = "+".join(sorted(weight_dtypes(code)))
        compiled = sorted({int(count) for count in re.findall(r"num_threads\((\d+)\)", code)})
        facts: dict[str, Scalar] = {
            "precision": name_tf32(PRECISIONS.get(dtypes, "mixed"), self._case.device),
            "weight_dtypes": dtypes,
            "threads": torch.get_num_threads(),
            "compiled_threads": " ".join(map(str, compiled)),
            "generated_kernels": len(set(re.findall(r"\b(?:call_)?(cpp_fused\w+|triton_\w+fused\w+)\(", code))),
            "mkldnn_calls": len(re.findall(r"aoti_torch_cpu_(?:mkldnn_)?\w+_pointwise\w*\(", code)),
            "runners": self._runners,
            **describe_products(self._call, self._case),
        }
        if not set(compiled) <= {torch.get_num_threads()}:
            facts["fallback"] = f"compiled for {facts['compiled_threads']} threads, run with {facts['threads']}"
        return facts


def read_code(package: Path) -> Iterator[str]:
    """Yield the C++ that the library in *package* was compiled from, which lies beside it."""
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if name.endswith(".cpp"):
                yield archive.read(name).decode()


def weight_dtypes(code: str) -> set[str]:
    """Return the types of the constants of more than one dimension that *code* declares."""
    constants: dict[str, dict[str, str]] = {}
    for number, name, value in CONSTANT.findall(code):
        constants.setdefault(number, {})[name] = value
    matrices = (facts for facts in constants.values() if "," in facts.get("shape", ""))
    return {facts["dtype"].removeprefix("cached_torch_dtype_") for facts in matrices}


BACKEND = AotiBackend()
