"""What the machine did while something was measured, and the most that it can do: facts of a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.json_lines import from_json

#: What the arithmetic ceilings are of; older records had the product alone.
PRODUCT = "product of square matrices"
PRODUCT_OR_CONVOLUTION = f"{PRODUCT}, or its 3 x 3 convolution if that does more"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceState:
    """What NVML told of the GPU around one block; each is None where it did not tell.

    Attributes:
        sm_clock_mhz: Clock of the multiprocessors right after the last call [MHz].
        memory_clock_mhz: Clock of the memory then [MHz].
        temperature_c: Temperature of the chip then [degree Celsius].
        power_w: Power drawn by the whole board then [W].
        energy_j: Energy of the whole board over the block, its discarded calls included [J]; coarse, as
            the counter moves every 20 to 100 ms.
        slowdowns: What slowed the clocks right before or after the block (`device_state.SLOWDOWNS`).
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    slowdowns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Energy of calls that follow each other, each waited for, or why there is none.

    Attributes:
        source: ``nvml`` (the whole board) or ``rapl`` (all processor packages); empty without a counter.
        energy_j: Difference of the counter [J], idle power included; None where it was not measured.
        window_s: Length of the window [s].
        images: Images that went through in it.
        foreign_load: As that of a `Block`; None where the system does not tell.
        reason: Why there is no energy, or why it is not that of the case; empty where there is one to be told.
    """

    source: str = ""
    energy_j: float | None = None
    window_s: float = 0.0
    images: int = 0
    foreign_load: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """The most that a device did, of several short blocks: what no case can be expected to pass.

    Attributes:
        matmul_flop_s: The most arithmetic by precision [FLOP/s], a multiply-add being two.
        copy_b_s: Bytes read and written in copying within the device's memory [B/s].
        arithmetic: Of what that is the most.
        failures: Why one of them (a precision, or ``copy``) is not known.
    """

    device: str
    threads: int
    matmul_flop_s: Mapping[str, float] = field(default_factory=dict)
    copy_b_s: float | None = None
    arithmetic: str = PRODUCT
    failures: Mapping[str, str] = field(default_factory=dict)


def read_ceilings(about: Mapping[str, object]) -> Ceilings:
    """Return the ceilings in *about*, the facts of ``run.json``; empty ones where there are none."""
    facts = about.get("ceilings")
    return from_json(Ceilings, json.dumps(facts)) if isinstance(facts, Mapping) else Ceilings(device="", threads=0)
