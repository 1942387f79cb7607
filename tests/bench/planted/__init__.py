"""Backends with planted faults: what the harness must catch. Loaded through `LENSING_BENCH_BACKENDS`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, LocalSession
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


#: A leak is of this many bytes a call, and ends by itself should nobody end it.
LEAK_BYTES, MOST_LEAKS = 2**28, 24


@dataclass(frozen=True)
class Planted:
    """A backend that runs eager fp32 and adds one fault."""

    name: str
    precisions: Mapping[str, tuple[str, ...]]

    def probe(self, device: str) -> Availability:
        return Availability(version="1")

    def refuse(self, case: Case) -> str | None:
        return None if case.precision in self.precisions["cpu"] else "planted in another precision"

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> LocalSession:
        if self.name == "planted_unbuildable":
            raise RuntimeError("the planted builder\nnever builds")
        if self.name == "planted_greedy":
            raise MemoryError("a batch too many")
        return PlantedSession(network, self.name)


class PlantedSession(LocalSession):
    def __init__(self, network: LensNetwork, fault: str) -> None:
        self._network, self._fault = network, fault
        self._leaked: list[torch.Tensor] = []

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        import torch

        if self._fault == "planted_hang":
            time.sleep(3600)
        if self._fault == "planted_raising":
            raise RuntimeError("the planted kernel\nnever runs")
        if self._fault == "planted_leak" and len(self._leaked) < MOST_LEAKS:
            self._leaked.append(torch.ones(LEAK_BYTES, dtype=torch.uint8))

        with torch.no_grad():
            outputs: torch.Tensor = self._network(images)
        if self._fault == "planted_crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._fault == "planted_unservable" and "mlperf_loadgen" in sys.modules:
            raise RuntimeError("the planted session\nserves nobody")
        if self._fault == "planted_nan":
            outputs[0, 0] = float("nan")
        if self._fault == "planted_shape":
            outputs = outputs[:, :-1]
        if self._fault == "planted_flipping":
            outputs = _flip(outputs, images)
        if self._fault == "planted_wrong":
            outputs = outputs + 0.01 * outputs.abs().max()
        return outputs

    def evidence(self) -> Mapping[str, Scalar]:
        if self._fault == "planted_fallback":
            return {"precision": "fp32", "fallback": "ran on the CPU"}
        return {"precision": "bf16" if self._fault == "planted_flipping" else "fp32"}


def _flip(outputs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return *outputs* with each class taken for the next in about one of two images, whatever their batch."""
    chosen = (images[:, 0, 0, 0] * 65535).long() % 2 == 0
    return outputs.where(~chosen[:, None], outputs.roll(1, dims=1))


def plant(name: str, precision: str = "fp32") -> Planted:
    return Planted(name=name, precisions={"cpu": (precision,)})
