"""torch.compile with inductor: the whole network as one graph, its weights frozen into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

from bench.backends.base import Availability, TorchSession, Tunable, name_precision, name_tf32, refuse_by_table
from bench.inductor_build import compile_settings, make_ready, probe_compiler, use_cache_in
from bench.onednn import describe_products
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork

#: Calls in the code that inductor writes, by what they are; each is made once a call of the network.
CALLS = {
    "generated_kernels": re.compile(r"^\s+(?:cpp_\w+\(|triton_\w+\.run\()", re.MULTILINE),
    "mkldnn_calls": re.compile(r"torch\.ops\.(?:mkldnn|onednn)\.[\w.]+\("),
    "library_calls": re.compile(r"(?:extern_kernels|torch\.ops\.(?:aten|mkl))\.[\w.]+\("),
}


class InductorBackend(Tunable):
    """`torch.compile` for one batch size; a graph break is an error, not a slower network."""

    name = "inductor"
    compiles_long = True
    precisions: Mapping[str, tuple[str, ...]] = {
        "cpu": ("fp32", "bf16"),
        "cuda": ("fp32", "fp16", "tf32", "bf16"),
    }

    def probe(self, device: str) -> Availability:
        """Return the version of torch; its compiler needs one for C++, and on CUDA triton."""
        return probe_compiler(device, has_bindings=True)

    def refuse(self, case: Case) -> str | None:
        """Return why the precision is not to be had on the device, or None."""
        return refuse_by_table(self, case)

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        """Return on CUDA whether kernels are chosen by timing them, which takes minutes more."""
        return {"max_autotune": (False, True)} if case.device == "cuda" else {}

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> InductorSession:
        """Compile *network* by a first call; inductor's cache has the kernels that were compiled before.

        Raises:
            RuntimeError: If the graph breaks or the compiler fails.
        """
        import torch

        from bench.export import example_shape

        use_cache_in(workdir, case.device)
        compiled = torch.compile(make_ready(network, case), fullgraph=True, dynamic=False)
        example = torch.rand(example_shape(network, case.batch_size), device=case.device)
        before = Tally.now()
        # Not as options of torch.compile: what traces the network would not see them, and freeze nothing.
        # Freezing wants what `infer` does too: no gradients.
        chosen = {"max_autotune": bool(self._settings.get("max_autotune", False))}
        with torch.inference_mode(), torch._inductor.config.patch({**compile_settings(), **chosen}):
            compiled(example)
        return InductorSession(compiled, case, slots, before)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What torch's compiler has done in this process so far.

    Attributes:
        counts: Graphs compiled, graph breaks.
        written: Modules that hold the code of a graph.
    """

    counts: Mapping[str, int]
    written: tuple[ModuleType, ...]

    @classmethod
    def now(cls) -> Tally:
        """Return what it has done until now."""
        from torch._dynamo.utils import counters
        from torch._inductor.codecache import PyCodeCache

        return cls(
            counts={
                "graphs": counters["stats"]["unique_graphs"],
                "graph_breaks": sum(counters["graph_break"].values()),
            },
            written=tuple(module for module in PyCodeCache.modules if hasattr(module, "call")),
        )

    def since(self, before: Tally) -> Tally:
        """Return what was done since *before*."""
        counts = {name: count - before.counts[name] for name, count in self.counts.items()}
        known = set(map(id, before.written))
        return Tally(counts=counts, written=tuple(module for module in self.written if id(module) not in known))


class InductorSession(TorchSession):
    """A compiled graph. On a CPU its own kernels hold Python's lock, so that two slots share it; oneDNN's do not."""

    def __init__(self, call: Callable[..., torch.Tensor], case: Case, slots: int, before: Tally) -> None:
        super().__init__(call, case, slots)
        self._before, self._built = before, Tally.now().since(before)

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the dtypes of the frozen weights, and what the graph that runs is made of."""
        import torch

        frozen = [tensor for module in self._built.written for tensor in frozen_weights(module)]
        precision, dtypes = name_precision(frozen)
        facts: dict[str, Scalar] = {
            "precision": name_tf32(precision, self._case.device),
            "weight_dtypes": dtypes,
            "threads": torch.get_num_threads(),
            "frozen_weights": len(frozen),
            **self._built.counts,
            **count_calls("\n".join(written_code(module) for module in self._built.written)),
            **describe_products(self._call, self._case),
        }
        if fallback := self._find_fallback(len(frozen)):
            facts["fallback"] = fallback
        return facts

    def _find_fallback(self, frozen: int) -> str:
        """Return what torch's compiler silently did otherwise, or an empty text."""
        if graphs := Tally.now().since(self._before).counts["graphs"] - self._built.counts["graphs"]:
            return f"compiled anew {graphs} times after it was ready"
        if self._built.counts != {"graphs": 1, "graph_breaks": 0}:
            return f"not compiled as one graph without a break: {dict(self._built.counts)}"
        return "" if frozen else "no weight was frozen"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have torch forget every graph of this process, which hold the weights."""
        import torch

        torch._dynamo.reset()


def frozen_weights(module: ModuleType) -> list[torch.Tensor]:
    """Return the tensors that the graph in *module* holds as constants."""
    import torch

    return [value for value in vars(module).values() if isinstance(value, torch.Tensor)]


def written_code(module: ModuleType) -> str:
    """Return the code that inductor wrote into *module*."""
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def count_calls(code: str) -> dict[str, Scalar]:
    """Return how many kernels and library functions *code* calls, by kind."""
    return {name: len(pattern.findall(code)) for name, pattern in CALLS.items()}


BACKEND = InductorBackend()
