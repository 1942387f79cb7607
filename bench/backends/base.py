"""The seam between the harness and a runtime: two small protocols, and what both sides promise."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """Whether a backend can run here: its version, or the reason why not and the remedy.

    Exactly one of the two is set.
    """

    version: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if bool(self.version) == bool(self.reason):
            raise ValueError("availability is a version or a reason, one of the two")


class Session(Protocol):
    """A network made ready for one case; a context manager that frees it.

    The session owns its output buffers: the outputs of a slot are valid until that slot's next
    call. Slots may be driven from a thread each at once; a session that cannot takes them one after
    the other and says so in its evidence, under ``serialised``. It never reads a clock.

    On CUDA a session may have two methods more. ``stream_of(slot)``, the stream that the slot's work is on, None for
    the caller's current one: for the variant `graph` (`bench.cuda_graph`) and the time of the GPU (`bench.gpu_time`).
    ``with_own_graph(reason)``, which returns a session that captures itself, where ours, for *reason*, cannot.
    """

    artifact_bytes: int | None
    artifact_cached: bool | None
    """Whether the deployed file was there when `prepare` asked for it; None where there is none."""

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Start inference and return the outputs, which may not be there before `synchronize`.

        Args:
            images: (B, C, H, W) float32 in [0, 1] on the case's device, contiguous; B is exactly
                the case's batch size (the caller pads a ragged batch).
            slot: Which of the `slots` requests in flight this is.

        Returns:
            (B, K) float32 on the case's device.
        """
        ...

    def synchronize(self, slot: int | None = None) -> None:
        """Wait until every started inference, or that of *slot*, has its outputs."""
        ...

    def evidence(self) -> Mapping[str, Scalar]:
        """Return proof of what ran, read back from the runtime after at least one `infer`.

        ``precision`` is the arithmetic that ran and ``threads`` what the runtime says it uses; a
        silent fallback is named under ``fallback``.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """A runtime. Cheap to construct: nothing is imported or built before `prepare`.

    One that compiles each network for minutes has ``compiles_long = True``, and is planned on request only.
    One that can run a case in several ways has one more method, ``variants_of(case)``: the names of the
    runtime variants of the case's cell, ``default`` first (`bench.plan.variants_of`).
    One that has settings to choose has two, for the variant `tuned`: ``knobs(case)``, the values of each by name, the
    default first, and ``with_settings(settings)``, which returns a backend that prepares with those
    (`bench.knob.knobs_of`); the threads are the case's and need no word. One of whose artifact no two builds need be
    alike has ``builds_differ = True``, and numbers them by the setting ``build``, from 0, of ``with_settings``.
    """

    name: str
    precisions: Mapping[str, tuple[str, ...]]
    """Precisions by device, the first being the default; a device that is missing is refused."""

    def probe(self, device: str) -> Availability:
        """Say whether this machine can run the backend, without importing the runtime."""
        ...

    def refuse(self, case: Case) -> str | None:
        """Return why *case* cannot be run by this backend on any machine, or None."""
        ...

    def prepare(self, network: LensNetwork, case: Case, workdir: Path, slots: int = 1) -> Session:
        """Return a session for *case*.

        Args:
            network: Trained network on the CPU in evaluation mode, fp32, contiguous; the session
                may change it. A backend that sets ranges by images, for int8, finds them in
                ``network.calibration``: of the training split alone, read only if asked for.
            case: What to run; `probe` and `refuse` have let it pass.
            workdir: Folder for files derived from the network, shared by all cases.
            slots: Requests that may be in flight at once.

        Raises:
            RuntimeError: If the runtime cannot build it; the message is the case's reason.
        """
        ...


class Tunable:
    """What a backend with settings to choose shares: it is made anew with those that were chosen."""

    def __init__(self, settings: Mapping[str, Scalar] | None = None) -> None:
        self._settings = dict(settings or {})

    def with_settings(self, settings: Mapping[str, Scalar]) -> Self:
        """Return the backend that prepares with *settings*."""
        return type(self)(settings)


class LocalSession:
    """What most sessions share: nothing to free, nothing to wait for, no file."""

    artifact_bytes: int | None = None
    artifact_cached: bool | None = None

    def synchronize(self, slot: int | None = None) -> None:
        """Return at once: `infer` has waited already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free nothing."""


class TorchSession(LocalSession):
    """A function of torch that is called; on CUDA on the caller's current stream, or on one a slot if they are several.

    Args:
        call: Maps (B, C, H, W) float32 to (B, K) float32 on the case's device, e.g. a module.
        case: What is run.
        slots: Requests that may be in flight at once.
    """

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], case: Case, slots: int = 1) -> None:
        self._call, self._case = call, case
        self._streams = new_streams(slots) if case.device == "cuda" and slots > 1 else []

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        """Return outputs (B, K) float32; each call allocates its own."""
        import torch

        with torch.inference_mode():
            if not self._streams:
                outputs = self._call(images)
            else:
                self._streams[slot].wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._streams[slot]):
                    outputs = self._call(images)
        return outputs

    def stream_of(self, slot: int) -> torch.cuda.Stream | None:
        """Return the stream of *slot*; None where it is the caller's current one."""
        return self._streams[slot] if self._streams else None

    def synchronize(self, slot: int | None = None) -> None:
        """Wait for the device, or the slot's stream; on the CPU `infer` has waited already."""
        if self._case.device == "cuda":
            import torch

            if slot is not None and self._streams:
                self._streams[slot].synchronize()
            else:
                torch.cuda.synchronize()


def new_streams(count: int) -> list[torch.cuda.Stream]:
    """Return *count* streams of the GPU that none shares; waiting for one does not wait for the others."""
    import torch

    return [torch.cuda.Stream() for _ in range(count)]  # type: ignore[no-untyped-call]  # torch's own


def divisions(case: Case) -> tuple[int, ...]:
    """Return into how many requests of as many images and threads a batch of *case* may be divided; 1 first."""
    counts = range(1, case.threads + 1)
    return tuple(count for count in counts if case.batch_size % count == 0 == case.threads % count)


def name_precision(weights: Iterable[torch.Tensor]) -> tuple[str, str]:
    """Return the precision that *weights* of more than one dimension have, ``mixed`` if several, and their dtypes."""
    dtypes = "+".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dim() > 1}))
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtypes, "mixed"), dtypes


def name_tf32(precision: str, device: str) -> str:
    """Return *precision*, but ``tf32`` for fp32 on CUDA where torch's convolutions or products may round to it."""
    if (device, precision) != ("cuda", "fp32"):
        return precision
    import torch

    # The stubs of torch 2.15 lack the settings of cuDNN's parts.
    allowed = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if "tf32" in allowed else "fp32"


def installed(*distributions: str, remedy: str) -> Availability:
    """Return the version of the first installed of *distributions*, or *remedy* as the reason."""
    for name in distributions:
        try:
            return Availability(version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(reason=f"{distributions[0]} is not installed; {remedy}")


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA kernel driver is loaded; no GPU is touched.

    A container may hide ``/proc/driver`` and keep the device node; WSL has neither.
    """
    traces = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
    return any(Path(trace).exists() for trace in traces)


def refuse_by_table(backend: Backend, case: Case, why: Mapping[str, str] | None = None) -> str | None:
    """Return why the precision table of *backend* has no such cell, or None.

    Args:
        backend: Whose `precisions` are asked.
        case: The cell.
        why: Reasons by ``device`` or ``device/precision``, where the plain one says too little.
    """
    reasons = why or {}
    if case.device not in backend.precisions:
        return reasons.get(case.device, f"{backend.name} does not run on {case.device}")
    if case.precision not in backend.precisions[case.device]:
        known = ", ".join(backend.precisions[case.device])
        plain = f"{backend.name} on {case.device} has no {case.precision}; it has {known}"
        return reasons.get(f"{case.device}/{case.precision}", plain)
    return None
