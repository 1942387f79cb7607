from __future__ import annotations

import mmap
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import memory
from bench.memory import PeakMeter, explain, is_out_of_memory

SIZE = 64 * 2**20


def fill_and_free() -> None:
    """Take `SIZE` bytes that the system must back, and give them back at once."""
    with mmap.mmap(-1, SIZE) as taken:
        for page in range(0, SIZE, mmap.PAGESIZE):
            taken[page] = 1


needs_peak = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps no peak")


@needs_peak
def test_memory_that_was_freed_again_counts() -> None:
    with PeakMeter("cpu") as meter:
        fill_and_free()

    assert meter.host.source == "VmHWM"
    assert 0.95 * SIZE <= (meter.host.used_bytes or 0) < 2 * SIZE  # the system counts in bunches of pages


@needs_peak
def test_memory_that_was_freed_before_does_not_count() -> None:
    fill_and_free()

    with PeakMeter("cpu") as meter:
        pass

    assert (meter.host.used_bytes or 0) < SIZE / 2


def test_what_the_system_does_not_keep_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLEAR", Path("/nowhere/clear_refs"))

    with mmap.mmap(-1, SIZE) as taken, PeakMeter("cpu") as meter:
        for page in range(0, SIZE, mmap.PAGESIZE):
            taken[page] = 1

    assert meter.host.source == "sampled RSS"
    assert 0.95 * SIZE <= (meter.host.used_bytes or 0) < 2 * SIZE  # the system counts in bunches of pages


def test_a_look_keeps_the_largest_value_less_the_first() -> None:
    values = iter([100, 700, 300])
    look = memory.Look(lambda: next(values))

    look.take()

    assert look.rise() == 600


def test_the_gpu_is_not_asked_for_on_the_cpu() -> None:
    with PeakMeter("cpu") as meter:
        pass

    assert (meter.gpu.used_bytes, meter.gpu.source) == (None, "")


UUID = "GPU-of-torch"


class Nvml(types.ModuleType):
    """Stands for pynvml: processes and memory of one GPU, which grow at every look."""

    class NVMLError(Exception):
        pass

    def __init__(self, pid: int, *, works: bool = True) -> None:
        super().__init__("pynvml")
        self.pid, self.works, self.own, self.whole = pid, works, 0, 10_000

    def nvmlInit(self) -> None:  # noqa: N802  (pynvml's names)
        if not self.works:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise self.NVMLError("no such GPU")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[types.SimpleNamespace]:  # noqa: N802
        # A process is listed from its first use of the GPU on.
        return [types.SimpleNamespace(pid=self.pid, usedGpuMemory=self.own)] if self.own else []

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:  # noqa: N802
        return types.SimpleNamespace(used=self.whole + self.own)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], Nvml]:
    def put(nvml: Nvml) -> Nvml:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(memory, "device_uuid", lambda: UUID)
        return nvml

    return put


def test_the_memory_of_this_process_is_read_where_nvml_lists_it(plant: Callable[[Nvml], Nvml]) -> None:
    nvml = plant(Nvml(os.getpid()))

    with PeakMeter("cuda") as meter:
        nvml.own = 3000

    assert (meter.gpu.used_bytes, meter.gpu.source) == (3000, "NVML, this process")


def test_the_rise_of_the_whole_gpu_is_read_where_nvml_lists_others_only(plant: Callable[[Nvml], Nvml]) -> None:
    nvml = plant(Nvml(-1))

    with PeakMeter("cuda") as meter:
        nvml.own = 3000

    assert (meter.gpu.used_bytes, meter.gpu.source) == (3000, "NVML, whole GPU")


def test_without_a_driver_the_memory_of_the_gpu_is_not_available(plant: Callable[[Nvml], Nvml]) -> None:
    plant(Nvml(os.getpid(), works=False))

    with PeakMeter("cuda") as meter:
        pass

    assert meter.gpu.used_bytes is None


@pytest.mark.parametrize(
    "text",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried",
        "RuntimeException: [ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation",
        "Fail: Failed to allocate memory for requested buffer of size 1073741824",
        "RuntimeError: std::bad_alloc",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MemoryError: ",
        "_ArrayMemoryError: Unable to allocate 7.45 GiB for an array",
        "the process died in open: SIGKILL (out of memory?)",
    ],
)
def test_memory_that_ran_out_is_known_by_each_runtime_s_words(text: str) -> None:
    assert is_out_of_memory(text)


@pytest.mark.parametrize(
    "text", ["RuntimeError: shapes do not match", "ValueError: no images allocated to a split", "SIGSEGV"]
)
def test_another_error_is_not_taken_for_it(text: str) -> None:
    assert not is_out_of_memory(text)


def test_a_reason_says_first_that_memory_ran_out() -> None:
    assert explain(MemoryError()) == "out of memory: MemoryError: "
    assert explain(ValueError("no such layer")) == "ValueError: no such layer"
