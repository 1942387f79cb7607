"""RAPL over a made-up tree of the kernel's files, and the window over a made-up counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import device_state, energy
from bench.device_state import DeviceMonitor
from bench.energy import NO_WINDOW, NvmlCounter, RaplCounter, ask_energy, measure_energy
from bench.machine_facts import Energy
from bench.measure import BlockPlan, Clock
from bench.process import WorkerError
from tests.bench.conftest import make_case
from tests.bench.fake_nvml import FakeNvml, gpu, install
from tests.bench.test_measure import Waiting

FIRST = "GPU-1111"
RANGE_UJ = 262_143_328_850


def zone(root: Path, path: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    for file, value in {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj}.items():
        (folder / file).write_text(f"{value}\n", encoding="ascii")
    return folder


def count(package: Path, energy_uj: int) -> None:
    (package / "energy_uj").write_text(f"{energy_uj}\n", encoding="ascii")


def test_energy_is_the_sum_of_the_packages(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 10**6), zone(tmp_path, "intel-rapl:1", "package-1", 0)
    counter = RaplCounter(tmp_path)
    count(first, 3_500_000)
    count(second, 4_000_000)

    assert counter.read_j() == pytest.approx(6.5)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    counter = RaplCounter(tmp_path)
    count(package, 2_000_000)

    assert counter.read_j() == pytest.approx(3.0)


def test_each_package_wraps_at_its_own_range(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 19_000_000, range_uj=20_000_000)
    counter = RaplCounter(tmp_path)
    count(first, 0)
    count(second, 500_000)

    assert counter.read_j() == pytest.approx(1.0 + 1.5)


def test_readings_add_up_over_several_wraps(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=10_000_000)
    counter = RaplCounter(tmp_path)
    for value in (6_000_000, 2_000_000, 8_000_000, 4_000_000):
        count(package, value)
        total_j = counter.read_j()

    assert total_j == pytest.approx(24.0)


def test_zones_within_a_package_and_of_the_platform_are_not_added(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = zone(tmp_path, "intel-rapl:1", "psys", 0)
    counter = RaplCounter(tmp_path)
    for folder in (package, core, platform):
        count(folder, 1_000_000)

    assert counter.read_j() == pytest.approx(1.0)


def test_without_a_package_there_is_no_counter(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no RAPL package under .*; a virtual machine usually has none"):
        RaplCounter(tmp_path / "powercap")


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def read_text(path: Path, encoding: str | None = None) -> str:
        if path == package / "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, encoding)

    monkeypatch.setattr(Path, "read_text", read_text)

    with pytest.raises(LookupError, match="energy_uj: readable by root only"):
        RaplCounter(tmp_path)


class Ramp:
    """A counter that gains 5 J from one reading to the next."""

    source = "rapl"
    total_j = 100.0

    def read_j(self) -> float:
        self.total_j += 5.0
        return self.total_j


def clock() -> Clock:
    plan = BlockPlan(block_s=0.01, calls=1, discards=0, warmup_s=0.01)
    return Clock(Waiting(0.002), [torch.zeros(4)], plan)


def test_a_window_has_its_energy_and_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda device: Ramp())

    found = measure_energy(clock(), "cpu", batch_size=4, window_s=0.05)

    assert found.energy_j == 5.0
    assert found.window_s >= 0.05
    assert found.images % 4 == 0
    assert 4 <= found.images <= 4 * found.window_s / 0.002


def test_without_a_window_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda device: Ramp())

    assert measure_energy(clock(), "cpu", batch_size=4, window_s=0.0) == Energy(source="rapl", reason=NO_WINDOW)


def test_without_a_counter_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "find_counter", lambda device: RaplCounter(tmp_path))

    found = measure_energy(clock(), "cpu", batch_size=4, window_s=0.05)

    assert found.energy_j is None
    assert found.reason.startswith("no RAPL package")


def test_the_counter_of_a_gpu_is_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({FIRST: gpu(nvmlDeviceGetTotalEnergyConsumption=7_000_250)}))
    monkeypatch.setattr(device_state, "open_monitor", lambda: DeviceMonitor(FIRST))

    assert NvmlCounter().read_j() == 7000.25


def test_a_gpu_without_a_counter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({}))
    monkeypatch.setattr(device_state, "open_monitor", lambda: DeviceMonitor(FIRST))

    with pytest.raises(LookupError, match="NVML has no total energy"):
        NvmlCounter()


class Answering:
    """Stands for a worker that answers *energy*, or fails with it."""

    pid = 1

    def __init__(self, answer: Energy | WorkerError) -> None:
        self._answer = answer

    def ask(self, name: str, window_s: float) -> Energy:
        if isinstance(self._answer, WorkerError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(("load", "spoilt"), [(0.01, False), (0.5, True), (float("nan"), False)])
def test_a_window_that_others_worked_in_is_not_told(monkeypatch: pytest.MonkeyPatch, load: float, spoilt: bool) -> None:
    class Meter:
        def __init__(self, pids: list[int], threads: int) -> None:
            pass

        def read(self) -> float:
            return load

    monkeypatch.setattr(energy, "LoadMeter", Meter)
    worker = Answering(Energy(source="rapl", energy_j=50.0, window_s=10.0, images=100))

    found = ask_energy(worker, make_case(), 10.0)  # type: ignore[arg-type]  # its one method

    assert bool(found.reason) == spoilt
    assert found.energy_j == 50.0


def test_a_worker_that_dies_costs_the_energy_alone() -> None:
    worker = Answering(WorkerError("the process died in energy:\nSIGSEGV"))

    found = ask_energy(worker, make_case(), 10.0)  # type: ignore[arg-type]  # its one method

    assert found == Energy(reason="the process died in energy: SIGSEGV")
