"""What a job is made of, and the mistakes that are found before anything is computed."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lensing_models.checkpoint import checkpoint_path, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.train import kept_card, main
from tests.lensing_models.test_checkpoint import CARD
from tests.lensing_models.test_fit import WHOLE, make_job

SUBSTRUCTURE, MASS = find_task("substructure"), find_task("halo_mass")
ENOUGH = {"train": 12, "validation": 6, "test": 3}


def simulated(folder: Path, **sizes: int) -> Store:
    return simulate_dataset(SUBSTRUCTURE, Split(**{**ENOUGH, **sizes}), folder / "substructure")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_images_is_named(tmp_path: Path, split: str) -> None:
    job = make_job(simulated(tmp_path, **{split: 0}))

    with pytest.raises(ValueError, match=f"0 {split} images are too few"):
        job.check()


def test_each_process_needs_an_image_to_validate(tmp_path: Path) -> None:
    job = make_job(simulated(tmp_path))
    job.check(6)

    with pytest.raises(ValueError, match="6 validation images are too few for 12 processes"):
        job.check(12)


def test_a_batch_is_shared_evenly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 12 images cannot be shared by 5 processes"):
        make_job(simulated(tmp_path)).check(5)


def test_an_epoch_is_chosen_by_a_metric_that_is_defined(tmp_path: Path) -> None:
    # Classes take turns: two images are of two classes.
    store = simulated(tmp_path, validation=2)

    make_job(store).check()  # a capped fit chooses no epoch
    with pytest.raises(ValueError, match="no validation image of vort, so no auc"):
        make_job(store, preset=WHOLE).check()


def test_every_job_is_checked_before_the_first_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensing_models.train.fit_one", lambda *_: pytest.fail("a fit was begun"))
    data = tmp_path / "data"
    simulate_dataset(MASS, Split(train=12, validation=4, test=4), data / "halo_mass")
    simulated(data, test=0)
    arguments = ["--models", "resnet18", "--tasks", "all", "--data", str(data), "--out", str(tmp_path / "out")]

    with pytest.raises(ValueError, match="0 test images"):
        main(arguments)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A network on substructure, of random weights."""
    torch.manual_seed(0)
    network = find_architecture("mobilenetv3_small").build(SUBSTRUCTURE)
    write_checkpoint(network, tmp_path, dataclasses.replace(CARD, task="substructure"))
    return checkpoint_path(tmp_path, "substructure", "mobilenetv3_small")


def test_a_start_of_another_shape_is_found_without_building_a_network(tmp_path: Path, checkpoint: Path) -> None:
    galaxies = simulate_dataset(
        find_task("galaxy_morphology"), Split(train=15, validation=5, test=5), tmp_path / "galaxies"
    )

    make_job(simulated(tmp_path), start=checkpoint).check()
    with pytest.raises(ValueError, match=r"1 bands\) is no start for galaxy_morphology/mobilenetv3_small, of 3 bands"):
        make_job(galaxies, start=checkpoint).check()
    with pytest.raises(ValueError, match="is no start for substructure/resnet18"):
        make_job(simulated(tmp_path / "other"), find_architecture("resnet18"), start=checkpoint).check()


def test_a_teacher_of_another_task_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    store = simulate_dataset(MASS, Split(train=12, validation=4, test=4), tmp_path / "halo_mass")

    with pytest.raises(ValueError, match="is of task 'substructure', not 'halo_mass'"):
        make_job(store, teacher=checkpoint).check()


def test_another_file_of_pretrained_weights_makes_another_fit(tmp_path: Path, checkpoint: Path) -> None:
    store = simulated(tmp_path)
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    job = make_job(store, preset=PRESETS["quick"], pretrained=True, weights=first)
    facts = dataclasses.asdict(job.identity())
    card = dataclasses.replace(CARD, task="substructure", **facts)
    network = find_architecture("mobilenetv3_small").build(SUBSTRUCTURE)
    write_checkpoint(network, tmp_path, card)

    assert kept_card(checkpoint, job)[0]
    again = dataclasses.replace(job, weights=second)
    assert kept_card(checkpoint, again) == (None, "another pretrained_file")
