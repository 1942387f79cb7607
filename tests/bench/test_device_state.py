"""NVML over a stand-in with the real names, and those names against the real package."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import device_state
from bench.device_state import SLOWDOWNS, DeviceMonitor, Reading, device_uuid, open_monitor, state_between
from bench.environment import describe_environment
from bench.machine_facts import DeviceState
from tests.bench.fake_nvml import REAL, FakeNvml, gpu, install

FIRST, SECOND = "GPU-1111", "GPU-2222"
HARMLESS = ("GpuIdle", "ApplicationsClocksSetting", "SyncBoost", "DisplayClockSetting")


def calls_of_nvml() -> list[tuple[str, int | None]]:
    """Return every attribute of NVML that `device_state` uses, and with how many arguments if it calls it."""
    tree = ast.parse(Path(device_state.__file__).read_text(encoding="utf-8"))
    called = {id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [
        (node.attr, called.get(id(node)))
        for node in attributes
        if ast.unparse(node.value) in {"nvml", "self._nvml"} and not node.attr.startswith("_")
    ]


def test_the_sources_are_searched_for_names_of_nvml() -> None:
    assert {"nvmlInit", "nvmlDeviceGetTotalEnergyConsumption", "NVML_CLOCK_SM"} <= {name for name, _ in calls_of_nvml()}


@pytest.mark.parametrize(("name", "arguments"), calls_of_nvml())
def test_the_real_package_has_each_name_and_takes_its_arguments(name: str, arguments: int | None) -> None:
    real = getattr(REAL, name)

    if arguments is not None:
        inspect.signature(real).bind(*range(arguments))


@pytest.mark.parametrize("constant", SLOWDOWNS.values())
def test_the_real_package_has_each_slowdown(constant: str) -> None:
    assert getattr(REAL, constant) > 0


def test_a_gpu_tells_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({FIRST: gpu()}))

    assert DeviceMonitor(FIRST).read() == Reading(
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        temperature_c=61,
        power_mw=512_300,
        total_energy_mj=7_000_250,
        slowdowns=(),
    )


@pytest.mark.parametrize(("name", "constant"), SLOWDOWNS.items())
def test_each_slowdown_is_named(monkeypatch: pytest.MonkeyPatch, name: str, constant: str) -> None:
    install(monkeypatch, FakeNvml({FIRST: gpu(nvmlDeviceGetCurrentClocksEventReasons=getattr(REAL, constant))}))

    assert DeviceMonitor(FIRST).read().slowdowns == (name,)


def test_idling_set_clocks_and_sync_boost_are_no_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = sum(getattr(REAL, f"nvmlClocksEventReason{name}") for name in HARMLESS)
    install(monkeypatch, FakeNvml({FIRST: gpu(nvmlDeviceGetCurrentClocksEventReasons=bits)}))

    assert DeviceMonitor(FIRST).read().slowdowns == ()


def test_what_a_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    old = gpu()
    del old["nvmlDeviceGetTotalEnergyConsumption"], old["nvmlDeviceGetCurrentClocksEventReasons"]
    install(monkeypatch, FakeNvml({FIRST: old}))

    reading = DeviceMonitor(FIRST).read()

    assert (reading.total_energy_mj, reading.slowdowns, reading.temperature_c) == (None, None, 61)


@pytest.mark.parametrize(
    ("nvml", "uuid"),
    [
        (FakeNvml({FIRST: gpu()}, has_driver=False), FIRST),
        (FakeNvml({FIRST: gpu()}), SECOND),
        (FakeNvml({FIRST: gpu()}), ""),
    ],
    ids=["no driver", "unknown GPU", "no GPU"],
)
def test_without_a_driver_or_the_gpu_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, uuid: str
) -> None:
    install(monkeypatch, nvml)

    assert DeviceMonitor(uuid).read() == Reading()
    assert DeviceMonitor(uuid).describe() == {}


def test_the_gpu_is_that_of_torch_and_not_the_first_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with CUDA_VISIBLE_DEVICES=1: torch's only GPU is NVML's second.
    install(monkeypatch, FakeNvml({FIRST: gpu(), SECOND: gpu(nvmlDeviceGetName="the second")}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="2222"))
    open_monitor.cache_clear()

    environment = describe_environment("cuda", 2)
    open_monitor.cache_clear()

    assert environment.hardware["gpu"] == "the second"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_torch_without_a_gpu_names_none() -> None:
    assert device_uuid() == ""


def test_a_block_on_a_cpu_has_no_state() -> None:
    assert state_between(None, None) is None


def test_the_state_of_a_block_is_that_after_it_and_the_energy_in_between() -> None:
    before = Reading(sm_clock_mhz=1200, power_mw=90_000, total_energy_mj=5_000, slowdowns=())
    after = Reading(sm_clock_mhz=1980, power_mw=512_300, total_energy_mj=12_500, temperature_c=61, slowdowns=())

    assert state_between(before, after) == DeviceState(
        sm_clock_mhz=1980, temperature_c=61, power_w=512.3, energy_j=7.5, slowdowns=()
    )


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [
        (("thermal",), ("power cap",), ("power cap", "thermal")),
        ((), ("hardware",), ("hardware",)),
        (None, (), ()),
        (None, None, None),
    ],
)
def test_a_slowdown_at_either_end_is_one_of_the_block(
    before: tuple[str, ...] | None, after: tuple[str, ...] | None, both: tuple[str, ...] | None
) -> None:
    state = state_between(Reading(slowdowns=before), Reading(slowdowns=after))

    assert state is not None
    assert state.slowdowns == both


def test_the_energy_of_a_block_is_unknown_if_an_end_is() -> None:
    state = state_between(Reading(), Reading(total_energy_mj=1))

    assert state is not None
    assert state.energy_j is None
