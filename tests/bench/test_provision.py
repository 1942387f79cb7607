"""Fits that are missing: one process each, and nothing stands in for one that failed."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch

from bench import provision
from bench.timetable import Timetable
from lensing_models.checkpoint import write_checkpoint
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, select_pairs
from tests.lensing_models.test_checkpoint import CARD

TINY = dataclasses.replace(PRESETS["quick"], split={"default": Split(train=6, validation=3, test=3)})


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Return the commands of fits, each of which fails; the caches are empty."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def fail(command: list[str], **_: object) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess, "run", fail)
    return commands


def provide(models: str, checkpoints: Path | None = None) -> provision.Provision:
    return provision.provide(
        select_pairs(models, "all"),
        preset=TINY,
        data=None,
        checkpoints=checkpoints,
        device="cpu",
        threads=1,
        timetable=Timetable(),
    )


def test_each_missing_network_is_fitted_by_a_process_of_its_own(fits: list[list[str]]) -> None:
    found = provide("resnet18,mobilenetv3_small")

    wanted = [(command[command.index("--models") + 1], command[command.index("--tasks") + 1]) for command in fits]
    assert sorted(wanted) == sorted(
        (model, task) for model in ("resnet18", "mobilenetv3_small") for task in ("halo_mass", "substructure")
    )
    assert found.checkpoints == {}


def test_a_cached_network_of_other_data_does_not_stand_in_for_a_fit_that_failed(fits: list[list[str]]) -> None:
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(select_pairs("halo_mass/mobilenetv3_small", "all")[0][0])
    folder = Path("results/cache/checkpoints/quick")
    write_checkpoint(network, folder, dataclasses.replace(CARD, recipe_digest="of other data"))

    found = provide("halo_mass/mobilenetv3_small")

    assert len(fits) == 1
    assert found.checkpoints == {}


@pytest.mark.parametrize(("checkpoints", "refit"), [(None, True), (Path("mine"), False)])
def test_the_cache_is_replaced_and_a_folder_that_was_named_is_not(
    fits: list[list[str]], checkpoints: Path | None, refit: bool
) -> None:
    provide("halo_mass/mobilenetv3_small", checkpoints)

    assert ("--refit" in fits[0]) is refit


def test_a_damaged_cached_network_whose_fit_fails_ends_no_run(fits: list[list[str]]) -> None:
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(select_pairs("halo_mass/mobilenetv3_small", "all")[0][0])
    write_checkpoint(network, Path("results/cache/checkpoints/quick"), CARD).write_bytes(b"damaged")

    assert provide("halo_mass/mobilenetv3_small").checkpoints == {}
    assert len(fits) == 1
