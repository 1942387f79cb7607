"""What the machine did and what it could have done, in words: ceilings, clocks, energy. No torch here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bench import cell
from bench.level import SLOW_ROW, find_levels, met_slow_anchor
from bench.machine_facts import DeviceState, Energy, read_ceilings
from bench.records import RunRecord
from bench.statistic import counted_blocks
from bench.table import Report, Row

CEILINGS = """\
- A ceiling is the best of several short blocks, measured once a run: torch's {arithmetic};
  and a copy in the device's memory (bytes read and written).
- `fraction_of_roof` in `table.csv` is the network's operations per image (a multiply-add is two) times the row's
  throughput, over that arithmetic at the row's precision: a fraction of the arithmetic roof alone. A network of
  depthwise convolutions, as MobileNet, is bound by memory and launches, and usually stays far below for that reason. It
  is a roof of torch's making: a row beyond 100 % needs fewer operations than are counted (Winograd), or has a better
  kernel than the one that was measured as the ceiling."""


def describe_ceilings(about: Mapping[str, object]) -> str:
    """Return the ceilings on one line; empty where none was measured."""
    ceilings = read_ceilings(about)
    parts = [f"{name} {cell.significant(value / 1e12)} TFLOP/s" for name, value in ceilings.matmul_flop_s.items()]
    if ceilings.copy_b_s:
        parts.append(f"copy {cell.significant(ceilings.copy_b_s / 1e9)} GB/s")
    return ", ".join(parts)


def ceiling_section(report: Report) -> list[str]:
    """Return the section on ceilings; none where there are none."""
    ceilings, line = read_ceilings(report.about), describe_ceilings(report.about)
    if not line and not ceilings.failures:
        return []
    lines = [f"- This device: {line}."] if line else []
    lines += [f"- Not measured, {name}: {reason}" for name, reason in ceilings.failures.items()]
    text = CEILINGS.format(arithmetic=ceilings.arithmetic)
    return ["\n".join(["## Ceilings", "", *lines, *_fractions(list(report.rows.values())), text])]


def anchor_lines(report: Report) -> Iterator[str]:
    """Yield how the anchors went from group to group, and how many rows met them slower than they can be."""
    remembered = report.levels
    for name, times in report.anchors.items():
        drift = f"{1e3 * min(times.values()):.3g} to {1e3 * max(times.values()):.3g} ms"
        earlier = (
            f"earlier runs say that over {1e3 * SLOW_ROW * remembered[name]:.3g} ms is slow"
            if name in remembered
            else "no earlier run of this machine tells whether all of this one was slow"
        )
        yield f"- The anchor {name}, measured among every group, took {drift} from group to group; {earlier}."
    records = [row.record for row in report.rows.values()]
    levels = find_levels(records, remembered)
    if count := sum(met_slow_anchor(record, levels) for record in records):
        who = "1 row" if count == 1 else f"{count} rows"
        yield (
            f"- In the rounds of {who} an anchor was more than {100 * SLOW_ROW - 100:.0f} % slower than it can be, "
            "whatever the counters say of other work: they are `contended`."
        )


def energy_lines(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield whose energy was counted, and why that of the other cases was not."""
    energies = [record.measurement.energy for record in records if record.measurement and record.measurement.energy]
    told = [energy for energy in energies if not energy.reason]
    if told:
        shortest = min(energy.window_s for energy in told)
        yield (
            f"- Energy of {len(told)} cases: {_sources(told)}, idle power included, over {shortest:.0f} s of calls or "
            "more; `energy_per_image_j` in `table.csv`."
        )
    for reason, count in Counter(energy.reason for energy in energies if energy.reason).items():
        yield f"- Energy of {count} {'case' if count == 1 else 'cases'}: not available: {reason}."


def device_lines(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield how the clocks of the GPU went over all counted blocks; nothing where none was told."""
    timings = [record.timing for record in records if record.timing]
    states = [block.device for timing in timings for block in counted_blocks(timing) if block.device]
    clocks = [state.sm_clock_mhz for state in states if state.sm_clock_mhz is not None]
    if clocks:
        heat = [state.temperature_c for state in states if state.temperature_c is not None]
        warmest = f", at most {max(heat)} degrees Celsius" if heat else ""
        yield f"- After each block the clock of the GPU was read: {min(clocks)} to {max(clocks)} MHz{warmest}."
    yield from _slowdowns(states)


def _slowdowns(states: Sequence[DeviceState]) -> Iterator[str]:
    told = [state.slowdowns for state in states if state.slowdowns is not None]
    slowed = Counter(name for names in told for name in names)
    if slowed:
        why = ", ".join(f"{name} in {count}" for name, count in slowed.most_common())
        yield f"- {sum(map(bool, told))} of {len(told)} blocks were measured on a slowed GPU ({why})."


def _fractions(rows: Sequence[Row]) -> Iterator[str]:
    """Yield for each network and precision the row that comes nearest to the roof."""
    known = [row for row in rows if not math.isnan(row.cost["fraction_of_roof"])]
    networks = dict.fromkeys((row.record.case.network, row.record.case.precision) for row in known)
    for network, precision in networks:
        same = [row for row in known if (row.record.case.network, row.record.case.precision) == (network, precision)]
        best = max(same, key=lambda row: row.cost["fraction_of_roof"])
        share, flop = best.cost["fraction_of_roof"], best.cost["flop_per_image"]
        how = f"{cell.runtime(best)} at batch {best.record.case.batch_size}"
        yield (
            f"- {network} ({cell.significant(flop / 1e9)} GFLOP an image) in {precision}: "
            f"{share:.1%} of the roof at most ({how})."
        )


def _sources(energies: Sequence[Energy]) -> str:
    names = {"nvml": "the whole board, by NVML", "rapl": "all processor packages, by RAPL"}
    return " and ".join(names.get(source, source) for source in sorted({energy.source for energy in energies}))
