"""Fits that are missing: one process each, and nothing stands in for one that failed."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
import torch

from bench import provision
from bench.timetable import Timetable
from lensing_models import train
from lensing_models.checkpoint import Card, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.job import LAST, Job
from lensing_models.network import LensNetwork
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task, select_pairs
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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return simulate_dataset(find_task("halo_mass"), Split(train=12, validation=4, test=4), tmp_path / "halo_mass")


def provide(models: str, checkpoints: Path | None = None, data: Path | None = None) -> provision.Provision:
    return provision.provide(
        select_pairs(models, "all"),
        preset=TINY,
        data=data,
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


@pytest.mark.parametrize("begun", [True, False])
def test_a_fit_that_was_interrupted_in_a_folder_that_was_named_is_gone_on_with(
    begun: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is obeyed in this process, the loop of the fit taken out."""
    mine = tmp_path / "mine"
    state = mine / "halo_mass-mobilenetv3_small.fit" / LAST
    if begun:
        state.parent.mkdir(parents=True)
        state.write_bytes(b"hours of work")
    found_state: list[bool] = []

    def fit(job: Job, *, resume: bool, **_: object) -> tuple[LensNetwork, Card]:
        found_state.append(resume and state.exists())
        return job.architecture.build(job.task), dataclasses.replace(CARD, **dataclasses.asdict(job.identity()))

    monkeypatch.setattr("lensing_models.fit.fit", fit)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: train.main(command[3:]))

    found = provide("halo_mass/mobilenetv3_small", mine, store.folder)

    assert found_state == [begun]
    assert ("halo_mass", "mobilenetv3_small") in found.checkpoints


def test_a_cached_network_of_another_input_size_is_fitted_again(fits: list[list[str]], store: Store) -> None:
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(find_task("halo_mass"))
    folder = Path("results/cache/checkpoints/quick")
    write_checkpoint(network, folder, dataclasses.replace(CARD, recipe_digest=store.recipe_digest, input_size=224))

    found = provide("halo_mass/mobilenetv3_small", data=store.folder)

    assert len(fits) == 1
    assert found.checkpoints == {}


def test_a_damaged_cached_network_whose_fit_fails_ends_no_run(fits: list[list[str]]) -> None:
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(select_pairs("halo_mass/mobilenetv3_small", "all")[0][0])
    write_checkpoint(network, Path("results/cache/checkpoints/quick"), CARD).write_bytes(b"damaged")

    assert provide("halo_mass/mobilenetv3_small").checkpoints == {}
    assert len(fits) == 1
