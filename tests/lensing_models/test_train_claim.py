"""What lies at the path of a checkpoint: kept, refused, or being fitted by somebody."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lensing_models.checkpoint import read_card, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.train_claim import hold, is_held, kept_card, read_stamp
from tests.lensing_models.test_checkpoint import CARD
from tests.lensing_models.test_fit import make_job

MASS = find_task("halo_mass")
QUICK, STANDARD = PRESETS["quick"], PRESETS["standard"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data") / "halo_mass"
    return simulate_dataset(MASS, Split(train=12, validation=4, test=4), folder)


@pytest.fixture
def checkpoint(tmp_path: Path, store: Store) -> Path:
    """A checkpoint of preset quick, seed 0, that claims to be fitted on the store."""
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(MASS)
    return write_checkpoint(network, tmp_path, dataclasses.replace(CARD, recipe_digest=store.recipe_digest, seed=0))


def change_card(path: Path, **changes: object) -> None:
    changed = dataclasses.replace(read_card(path), **changes)
    path.with_suffix(".json").write_text(changed.to_json())


@pytest.mark.parametrize(("whole", "kept"), [(True, False), (False, True)])
def test_a_fit_that_a_time_budget_cut_short_is_not_kept_for_a_whole_one(
    checkpoint: Path, store: Store, whole: bool, kept: bool
) -> None:
    change_card(checkpoint, preset="standard", converged=False)

    card, why = kept_card(checkpoint, make_job(store, preset=STANDARD), whole=whole)

    assert bool(card) == kept
    assert why == ("" if kept else "a time budget cut it short")


def test_a_fit_that_was_cut_short_is_another_one_first(checkpoint: Path, store: Store) -> None:
    """What is cut short is replaced unasked, what is another fit is not."""
    change_card(checkpoint, preset="standard", converged=False, seed=9)

    assert kept_card(checkpoint, make_job(store, preset=STANDARD), whole=True) == (None, "another seed")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("recipe_digest", "x"),
        ("preset", "standard"),
        ("seed", 9),
        ("teacher", "x"),
        ("start", "x"),
        ("pretrained_file", "x"),
        ("stream", True),
        ("focal_gamma", 2.0),
    ],
)
def test_a_checkpoint_of_other_circumstances_is_not_kept(
    checkpoint: Path, store: Store, change: str, value: object
) -> None:
    change_card(checkpoint, **{change: value})

    assert kept_card(checkpoint, make_job(store, preset=QUICK)) == (None, f"another {change}")


def test_a_damaged_checkpoint_is_not_kept(checkpoint: Path, store: Store) -> None:
    checkpoint.write_bytes(b"")

    card, why = kept_card(checkpoint, make_job(store, preset=QUICK))

    assert card is None
    assert "damaged" in why


def test_a_network_of_another_input_size_is_not_kept(checkpoint: Path, store: Store) -> None:
    change_card(checkpoint, input_size=224)

    card, why = kept_card(checkpoint, make_job(store, preset=QUICK))

    assert card is None
    assert "an input of 224 px" in why


def test_two_fits_to_the_same_weights_are_two(checkpoint: Path) -> None:
    first = read_stamp(checkpoint)
    change_card(checkpoint, recorded_at="2026-02-02T00:00:00+00:00")

    assert first is not None
    assert read_stamp(checkpoint) not in (first, None)


def test_two_processes_do_not_fit_into_one_folder(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "x.fit", wait=True),
        pytest.raises(ValueError, match="another process is fitting into it"),
        hold(tmp_path / "x.fit", wait=False),
    ):
        pytest.fail("both were")


def test_a_folder_is_held_as_long_as_somebody_fits_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "x.fit"

    assert not is_held(folder)
    assert not folder.exists()  # looking leaves nothing behind
    with hold(folder, wait=True):
        assert is_held(folder)
    assert not is_held(folder)
