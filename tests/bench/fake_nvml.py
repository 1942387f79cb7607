"""A stand-in for the module ``pynvml``: the real names and constants, the answers of a test."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bench.device_state import SLOWDOWNS, import_nvml

REAL = import_nvml()
CONSTANTS = ("NVML_CLOCK_SM", "NVML_CLOCK_MEM", "NVML_TEMPERATURE_GPU", *SLOWDOWNS.values())


class FakeNvml:
    """One machine with GPUs by UUID; what a GPU does not answer raises as in the real package.

    Args:
        gpus: For each UUID its answers by the function's name.
        has_driver: Whether `nvmlInit` finds one.
    """

    NVMLError = REAL.NVMLError

    def __init__(self, gpus: dict[str, dict[str, Any]], *, has_driver: bool = True) -> None:
        self._gpus, self._has_driver = gpus, has_driver
        for name in CONSTANTS:
            setattr(self, name, getattr(REAL, name))

    def nvmlInit(self) -> None:  # noqa: N802  (a name of NVML)
        if not self._has_driver:
            raise self.NVMLError(REAL.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802  (a name of NVML)
        if uuid not in self._gpus:
            raise self.NVMLError(REAL.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802  (a name of NVML)
        return "580.1"

    def __getattr__(self, name: str) -> Any:
        if not hasattr(REAL, name):
            raise AttributeError(name)

        def answer(handle: str, *which: int) -> Any:
            answers = self._gpus[handle]
            key = f"{name}({which[0]})" if which else name
            if key not in answers:
                raise self.NVMLError(REAL.NVML_ERROR_NOT_SUPPORTED)
            return answers[key]

        return answer


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    """Let *nvml* stand for the module ``pynvml``."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]  # that is what it stands for


def gpu(**answers: Any) -> dict[str, Any]:
    """Return the answers of a GPU at work, with changes by the function's name."""
    return {
        f"nvmlDeviceGetClockInfo({REAL.NVML_CLOCK_SM})": 1980,
        f"nvmlDeviceGetClockInfo({REAL.NVML_CLOCK_MEM})": 2619,
        f"nvmlDeviceGetTemperature({REAL.NVML_TEMPERATURE_GPU})": 61,
        "nvmlDeviceGetPowerUsage": 512_300,
        "nvmlDeviceGetTotalEnergyConsumption": 7_000_250,
        "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetName": "Fake H100",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30),
        **answers,
    }
