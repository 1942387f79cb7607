"""Energy of a window of calls: NVML's counter of the board, RAPL's of the processor packages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bench.machine_facts import Energy
from bench.measure import Clock, LoadMeter
from bench.process import Worker, WorkerError
from bench.records import FOREIGN_LIMIT, Case

#: Where Linux shows RAPL (kernel documentation, "Power Capping Framework"); AMD's packages are there too.
POWERCAP = Path("/sys/class/powercap")
NO_WINDOW = "the preset has no energy window"


class Counter(Protocol):
    """Counts energy; only differences mean something."""

    source: str

    def read_j(self) -> float:
        """Return the energy counted so far [J]; to be read more often than the hardware's counter wraps."""
        ...


class RaplCounter:
    """The sum over the processor packages of the machine.

    Args:
        root: Folder of the zones.

    Raises:
        LookupError: If there is no package, or its counter cannot be read; the message says why.
    """

    source = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        # Sub-zones (cores, memory) are within their package, and a platform zone holds them all.
        zones = sorted(zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1)
        self._packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        if not self._packages:
            raise LookupError(f"no RAPL package under {root}; a virtual machine usually has none")
        self._ranges = [int(_text(package / "max_energy_range_uj")) for package in self._packages]
        self._last, self._total_uj = self._counters(), 0

    def read_j(self) -> float:
        """Return the energy since construction [J]; a counter may wrap once between two calls."""
        now = self._counters()
        differences = zip(self._last, now, self._ranges, strict=True)
        self._total_uj += sum((after - before) % most for before, after, most in differences)
        self._last = now
        return self._total_uj / 1e6

    def _counters(self) -> list[int]:
        return [int(_text(package / "energy_uj")) for package in self._packages]


class NvmlCounter:
    """The whole board of the GPU that torch uses.

    Raises:
        LookupError: If NVML does not tell; the message says so.
    """

    source = "nvml"

    def __init__(self) -> None:
        from bench.device_state import open_monitor

        self._monitor = open_monitor()
        self.read_j()

    def read_j(self) -> float:
        """Return the energy since the driver was loaded [J]."""
        energy_mj = self._monitor.total_energy_mj()
        if energy_mj is None:
            raise LookupError("NVML has no total energy of this GPU (it has from Volta on, and not for a slice)")
        return energy_mj / 1e3


def find_counter(device: str) -> Counter:
    """Return the energy counter of *device*.

    Raises:
        LookupError: If it has none that can be read; the message says why.
    """
    return NvmlCounter() if device == "cuda" else RaplCounter()


def measure_energy(clock: Clock, device: str, batch_size: int, window_s: float) -> Energy:
    """Return the energy of calls back to back over *window_s* [s], or why there is none.

    Args:
        clock: Of the session, warmed up.
        device: ``cpu`` or ``cuda``.
        batch_size: Images a call.
        window_s: 0 for no window.
    """
    try:
        counter = find_counter(device)
        if not window_s:
            return Energy(source=counter.source, reason=NO_WINDOW)
        before_j = counter.read_j()
        calls, elapsed_s = clock.run_for(window_s)
        energy_j = counter.read_j() - before_j
    except LookupError as error:
        return Energy(reason=str(error.args[0]))
    return Energy(source=counter.source, energy_j=energy_j, window_s=elapsed_s, images=calls * batch_size)


def ask_energy(worker: Worker, case: Case, window_s: float) -> Energy:
    """Return the energy of *case*, whose session is open and warm in *worker*; see `measure_energy`.

    The counters know no processes: a window in which others worked is not that of the case.
    """
    meter = LoadMeter([worker.pid], case.threads)
    try:
        energy: Energy = worker.ask("energy", window_s)
    except WorkerError as error:
        return Energy(reason=" ".join(str(error).split()))
    if energy.energy_j is None:
        return energy
    load = meter.read()
    spoilt = f"other people's work kept {load:.0%} of the threads busy" if load > FOREIGN_LIMIT else ""
    return replace(energy, foreign_load=None if math.isnan(load) else load, reason=spoilt)


def _text(path: Path) -> str:
    """Return what a file of the kernel says.

    Raises:
        LookupError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        why = "readable by root only" if isinstance(error, PermissionError) else error.strerror
        raise LookupError(f"{path}: {why}") from error
