"""How much memory loading and inferring takes at most, on host and GPU, and what running out of it looks like."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench.device_state import device_uuid, import_nvml

#: Seconds between two looks where the system keeps no peak of its own.
LOOK_S = 0.01
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: How torch, ONNX Runtime, OpenVINO, TensorRT, NumPy and the standard library say it.
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|MemoryError|bad[_ ]alloc|(not|n't|unable to|failed to) allocate|alloc\w*[ _]fail"
    r"|insufficient (device )?memory|memory is insufficient|could not be allocated",
    re.IGNORECASE,
)


def is_out_of_memory(text: str) -> bool:
    """Return whether an error's type and message, *text*, say that memory ran out."""
    return bool(OUT_OF_MEMORY.search(text))


def explain(error: BaseException) -> str:
    """Return type and message of *error*, led by ``out of memory`` where that is what it says."""
    text = f"{type(error).__name__}: {error}"
    return f"out of memory: {text}" if is_out_of_memory(text) else text


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The most memory in use between two moments, less that at the first; None where it cannot be told.

    Attributes:
        used_bytes: How much.
        source: Where it was read; empty where it was not.
    """

    used_bytes: int | None = None
    source: str = ""


class PeakMeter:
    """Watches the memory of this process on the host and, with *device* ``cuda``, on the first GPU.

    A context manager: it watches between entering and leaving, and tells `host` and `gpu` after that.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.host, self.gpu = Peak(), Peak()
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self._gpu = {name: Look(read) for name, read in find_gpu_readers().items()} if self._device == "cuda" else {}
        self._host_before = resident_bytes()
        self._host = None if reset_peak() else Look(resident_bytes)
        self._looks = [*self._gpu.values(), *([self._host] if self._host else [])]
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if self._looks:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._looks:
            self._watcher.join()
        if self._host:
            self.host = Peak(used_bytes=self._host.rise(), source="sampled RSS")
        else:
            self.host = Peak(used_bytes=max(0, _status_bytes("VmHWM") - self._host_before), source="VmHWM")
        rises = {name: rise for name, look in self._gpu.items() if (rise := look.rise()) is not None}
        self.gpu = next((Peak(used_bytes=rise, source=name) for name, rise in rises.items()), Peak())

    def _watch(self) -> None:
        while not self._ending.wait(LOOK_S):
            for look in self._looks:
                look.take()


class Look:
    """The first and the largest of values that are read now and then."""

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read, self._first = read, read()
        self._largest = self._first

    def take(self) -> None:
        """Read once more."""
        if (value := self._read()) is not None:
            self._largest = max(value, self._largest or 0)

    def rise(self) -> int | None:
        """Read a last time and return the largest less the first; None if there never was a value."""
        self.take()
        return None if self._largest is None else self._largest - (self._first or 0)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Set the peak that the system keeps of this process to its present level; False where that is not permitted."""
    try:
        CLEAR.write_text("5", encoding="ascii")  # proc(5), clear_refs: 5 resets VmHWM
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int:
    """Return a line of ``/proc/self/status``, which counts in kB [B]."""
    lines = (line.partition(":") for line in STATUS.read_text(encoding="ascii").splitlines())
    return next(1024 * int(value.split()[0]) for key, _, value in lines if key == name)


def find_gpu_readers() -> dict[str, Callable[[], int | None]]:
    """Return functions that read memory on the GPU that torch uses by NVML, the better first, by what they read.

    In a container NVML lists processes under other numbers than they have there, and that of this
    process is never told; what remains is the memory in use on the whole GPU. Empty without NVML.
    """
    try:
        pynvml = import_nvml()
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(device_uuid())
        pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return {}
    return {
        "NVML, this process": lambda: _process_bytes(pynvml, handle),
        "NVML, whole GPU": lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
    }


def _process_bytes(nvml: Any, handle: object) -> int | None:  # pynvml is untyped
    """Return this process's memory on the GPU *handle*; None where NVML does not list it or its memory."""
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
