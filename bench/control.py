"""Sessions whose truth is known, by which the harness is judged: a known time, a known slowdown, a known error."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backends.base import Availability, LocalSession
from bench.measure import busy_wait, prolong, rest
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session
    from lensing_models.network import LensNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What a call does.

    Attributes:
        wait_s: Time that it waits busily [s].
        rest_s: Time that it leaves the processor to others [s]: two calls at once take no longer than one.
        is_alone: Whether one call waits for the end of another: two take twice as long as one.
        has_network: Whether it runs the network, eagerly in fp32.
        slowdown: Share of the network's time that it waits busily on top.
        fault: Added to each output, in units of their rms.
    """

    wait_s: float = 0.0
    rest_s: float = 0.0
    is_alone: bool = False
    has_network: bool = False
    slowdown: float = 0.0
    fault: float = 0.0


#: By variant of the case.
TRUTHS: Mapping[str, Truth] = {
    "null": Truth(),
    "wait_1ms": Truth(wait_s=1e-3),
    "wait_5ms": Truth(wait_s=5e-3),
    "wait_5ms_again": Truth(wait_s=5e-3),
    "wait_5ms_slow": Truth(wait_s=5.25e-3),
    "wait_20ms": Truth(wait_s=20e-3),
    "rest_20ms": Truth(rest_s=20e-3),
    "rest_20ms_alone": Truth(rest_s=20e-3, is_alone=True),
    "network": Truth(has_network=True),
    "network_again": Truth(has_network=True),
    "network_slow_2": Truth(has_network=True, slowdown=0.02),
    "network_slow_5": Truth(has_network=True, slowdown=0.05),
    "network_faulty": Truth(has_network=True, fault=3e-4),
}


class Control:
    """The backend of `TRUTHS`; it is in no list, the self-test alone asks for it."""

    name = "control"
    precisions: Mapping[str, tuple[str, ...]] = {"cpu": ("fp32",), "cuda": ("fp32",)}

    def probe(self, device: str) -> Availability:
        """Return the version of torch."""
        from bench.backends.eager import BACKEND

        return BACKEND.probe(device)

    def refuse(self, case: Case) -> str | None:
        """Refuse nothing."""
        return None

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> ControlSession:
        """Return the session of the case's variant."""
        from bench.backends.eager import BACKEND

        truth = TRUTHS[case.variant]
        inner = BACKEND.prepare(network, case, workdir) if truth.has_network else None
        return ControlSession(truth, inner, case)


class ControlSession(LocalSession):
    """Does what its truth says."""

    def __init__(self, truth: Truth, inner: Session | None, case: Case) -> None:
        import torch

        self._truth, self._inner = truth, inner
        self._turn = threading.Lock() if truth.is_alone else contextlib.nullcontext()
        self._nothing = torch.zeros(case.batch_size, 1, device=case.device)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return the network's outputs, or zeros (B, 1), after the known time."""
        if self._truth.wait_s:
            busy_wait(self._truth.wait_s)
        if self._truth.rest_s:
            with self._turn:
                rest(self._truth.rest_s)
        inner = self._inner
        if inner is None:
            return self._nothing

        def work() -> torch.Tensor:
            outputs = inner.infer(images)
            inner.synchronize()
            return outputs

        outputs = prolong(work, self._truth.slowdown) if self._truth.slowdown else work()
        return outputs + self._truth.fault * outputs.square().mean().sqrt() if self._truth.fault else outputs

    def evidence(self) -> Mapping[str, Scalar]:
        """Return the precision that is asked for, and whether calls wait for one another."""
        return {"precision": "fp32", **({"serialised": True} if self._truth.is_alone else {})}


CONTROL = Control()
