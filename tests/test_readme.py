"""The README's table of presets says what the code does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.scenario import EFFORTS
from lensing_models.preset import PRESETS, Preset
from lensing_models.registry import known_architectures

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
NAMES = {
    "mobilenetv3_small": "MobileNetV3-small",
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "efficientnet_b5": "EfficientNet-B5",
    "efficientnet_b5-px150": "its variant `px150`",
}


def stated(row: str) -> dict[str, str]:
    """Return the cells of the line of the preset table that begins with *row*, by preset."""
    header = next(line for line in README.splitlines() if line.startswith("| | `quick`"))
    line = next(line for line in README.splitlines() if line.startswith(f"| {row}"))
    names = [cell.strip(" `") for cell in header.strip("|").split("|")[1:]]
    return dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")[1:]), strict=True))


def images(preset: Preset) -> str:
    split = preset.split["default"]
    text = f"{split.train:,} + {split.validation:,} / {split.test:,}"
    for task, own in preset.split.items():
        if task != "default":
            text += f"; `{task}` {own.train:,} + {own.validation:,} / {own.test:,}"
    return text


def epochs(preset: Preset) -> str:
    rows = known_architectures()
    caps = [f"{rows[name].quick.most_steps} ({shown})" for name, shown in NAMES.items()]
    caps[0] = caps[0].replace(" (", " steps (")
    own = [f"`{task}` {count}" for task, count in preset.epochs.items() if task != "default"]
    text = "; ".join([str(preset.epochs["default"]), *own])
    return f"{text}, at most {', '.join(caps)}" if preset.step_capped else text


@pytest.mark.parametrize(
    ("row", "render"),
    [
        ("train + validation / test images", images),
        ("epochs", epochs),
        ("clean blocks: needed", lambda preset: f"{preset.blocks}, {preset.most_blocks}"),
        (
            "a block",
            lambda preset: f"{preset.discards}, {preset.block_calls} or more, {preset.block_s} or more",
        ),
        ("seconds of timed calls", lambda preset: f"{preset.case_s:.0f}"),
        ("processes that time a case", lambda preset: str(preset.processes)),
        ("builds of each", lambda preset: str(preset.builds)),
        ("samples it collects", lambda preset: {0: "0", 64: "64 (a p90)", 662: "662 (a p99)"}[preset.samples]),
        ("share of blocks", lambda preset: str(preset.saturated_share)),
        ("timed calls from end to end", lambda preset: str(preset.end_to_end_calls)),
        ("seconds of calls over which energy", lambda preset: f"{preset.energy_s:.0f}"),
        (
            "scenarios",
            lambda preset: ", ".join(f"{value:g}" for value in dataclasses.astuple(EFFORTS[preset.name])),
        ),
    ],
)
def test_the_preset_table_is_true(row: str, render: object) -> None:
    assert stated(row) == {name: render(preset) for name, preset in PRESETS.items()}  # type: ignore[operator]
