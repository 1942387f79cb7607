"""What the GPU does while it is measured, by NVML: clocks, heat, power, and what slows it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.machine_facts import DeviceState

#: Reasons of a clock below what the card could do that spoil a measurement, by their NVML constants
#: (NVML API reference, "NvmlClocksEventReasons"). Idling, clocks that somebody set, and sync boost do not.
SLOWDOWNS: Mapping[str, str] = {
    "power cap": "nvmlClocksEventReasonSwPowerCap",
    "thermal": "nvmlClocksEventReasonSwThermalSlowdown",
    "hardware": "nvmlClocksEventReasonHwSlowdown",
    "hardware thermal": "nvmlClocksEventReasonHwThermalSlowdown",
    "power brake": "nvmlClocksEventReasonHwPowerBrakeSlowdown",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What NVML tells of a GPU at one moment; each is None where it does not tell.

    Attributes:
        total_energy_mj: Energy of the board since the driver was loaded [mJ]; Volta and newer.
        slowdowns: Names of `SLOWDOWNS` that are active.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    total_energy_mj: int | None = None
    slowdowns: tuple[str, ...] | None = None


class DeviceMonitor:
    """Reads one GPU through NVML, which stays open until the process ends.

    Args:
        uuid: Of the GPU, as NVML writes it; see `device_uuid`. An unknown or empty one reads as nothing.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = import_nvml()
        self._handle = self._find(uuid) if uuid else None

    def read(self) -> Reading:
        """Return what the GPU does now."""
        nvml, handle = self._nvml, self._handle
        if handle is None:
            return Reading()
        ask = self._ask
        return Reading(
            sm_clock_mhz=self.sm_clock_mhz(),
            memory_clock_mhz=ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            temperature_c=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            power_mw=ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
            total_energy_mj=self.total_energy_mj(),
            slowdowns=self._slowdowns(),
        )

    def sm_clock_mhz(self) -> int | None:
        """Return the clock of the multiprocessors [MHz]."""
        return self._ask(lambda: self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def total_energy_mj(self) -> int | None:
        """Return the energy of the board since the driver was loaded [mJ]."""
        return self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def describe(self) -> dict[str, str | int]:
        """Return name, memory and driver; empty where NVML does not find the GPU."""
        nvml, handle = self._nvml, self._handle
        if handle is None:
            return {}
        return {
            "gpu": str(nvml.nvmlDeviceGetName(handle)),
            "gpu_memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
        }

    def _find(self, uuid: str) -> Any:  # an opaque handle of NVML
        try:
            self._nvml.nvmlInit()
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError:  # no driver, or a slice of a GPU, which has no clock of its own
            return None

    def _slowdowns(self) -> tuple[str, ...] | None:
        active = self._ask(lambda: self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        if active is None:
            return None
        return tuple(name for name, constant in SLOWDOWNS.items() if active & getattr(self._nvml, constant))

    def _ask(self, call: Callable[[], int]) -> int | None:
        """Return the answer of *call*; None where this GPU or driver has none."""
        if self._handle is None:
            return None
        try:
            return int(call())
        except self._nvml.NVMLError:
            return None


@functools.cache
def open_monitor() -> DeviceMonitor:
    """Return the monitor of the GPU that torch uses, one a process."""
    return DeviceMonitor(device_uuid())


def import_nvml() -> Any:  # the package has no types
    """Return the module ``pynvml`` of the package nvidia-ml-py."""
    with warnings.catch_warnings():
        # torch's stub package of the same name warns at import.
        warnings.simplefilter("ignore", FutureWarning)
        import pynvml
    return pynvml


def device_uuid() -> str:
    """Return the UUID of the GPU that torch uses, as NVML writes it; empty where torch has none.

    NVML counts all GPUs of the machine, torch those that ``CUDA_VISIBLE_DEVICES`` leaves: an index
    of one is not one of the other.
    """
    import torch

    if not torch.cuda.is_available():
        return ""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def state_between(before: Reading | None, after: Reading | None) -> DeviceState | None:
    """Return the state of a block of which these are the ends; None where there is no GPU."""
    if before is None or after is None:
        return None
    energies = before.total_energy_mj, after.total_energy_mj
    slowed = [reading.slowdowns for reading in (before, after) if reading.slowdowns is not None]
    return DeviceState(
        sm_clock_mhz=after.sm_clock_mhz,
        memory_clock_mhz=after.memory_clock_mhz,
        temperature_c=after.temperature_c,
        power_w=None if after.power_mw is None else after.power_mw / 1e3,
        energy_j=None if None in energies else ((energies[1] or 0) - (energies[0] or 0)) / 1e3,
        slowdowns=tuple(name for name in SLOWDOWNS if any(name in names for names in slowed)) if slowed else None,
    )
