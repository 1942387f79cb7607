"""A backend with settings to choose, one of them fast and one broken, and builds of which every other is slower."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from bench.backends.base import Availability, LocalSession, Tunable
from bench.records import Case, Scalar
from lensing_models.network import LensNetwork

#: What a build of odd number takes longer [s].
BUILD_S = 0.1


class PlantedTunable(Tunable):
    name = "planted_tunable"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32",)}
    builds_differ = True

    def probe(self, device: str) -> Availability:
        return Availability(version="1")

    def refuse(self, case: Case) -> str | None:
        return None if case.precision == "fp32" else "planted in fp32"

    def knobs(self, case: Case) -> Mapping[str, tuple[Scalar, ...]]:
        return {"wait_ms": (30, 50, 10), "broken": (False, True)}

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> LocalSession:
        if self._settings.get("broken"):
            raise RuntimeError("the planted setting\nis broken")
        wait_s = int(self._settings.get("wait_ms") or 30) / 1e3 + BUILD_S * (int(self._settings.get("build") or 0) % 2)
        return Waiting(network, wait_s, case.threads)


class Waiting(LocalSession):
    """Takes the time that it is told, and next to none for what it has answered before."""

    def __init__(self, network: LensNetwork, wait_s: float, threads: int) -> None:
        self._network, self._wait_s, self._threads = network, wait_s, threads
        self._answers: dict[bytes, torch.Tensor] = {}

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        time.sleep(self._wait_s)
        seen = images.numpy().tobytes()
        if seen not in self._answers:
            with torch.no_grad():
                self._answers[seen] = self._network(images)
        return self._answers[seen]

    def evidence(self) -> Mapping[str, Scalar]:
        return {"precision": "fp32", "threads": self._threads}


BACKEND = PlantedTunable()
