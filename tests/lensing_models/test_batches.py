"""Batches: a function of seed, epoch and number, whoever makes them and wherever the images lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lensing_models.batches import Order, Share, TrainingBatches, ValidationBatches, targets, training_loader, turn
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.data.supply import FreshImages, ResidentImages, StoredImages, Supply
from lensing_models.fit_module import Means, training_supply
from lensing_models.job import Job
from lensing_models.preset import Split
from lensing_models.registry import find_task
from tests.lensing_models.test_fit import make_job

CLASSES, MASS = find_task("substructure"), find_task("halo_mass")
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    sizes = Split(train=36, validation=7, test=3)
    return simulate_dataset(CLASSES, sizes, tmp_path_factory.mktemp("data") / "substructure")


def epoch_of(job: Job, epoch: int = 0, share: Share = Share(), workers: int = 0) -> list[Batch]:  # noqa: B008
    order = Order(job, share)
    order.set_epoch(epoch)
    batches = TrainingBatches(job.task, training_supply(job, Means()))
    return [tuple(batch) for batch in training_loader(batches, order, workers)]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for (images, labels), (others, their_labels) in zip(left, right, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


def test_an_epoch_shows_each_image_once_with_its_label(store: Store) -> None:
    batches = epoch_of(make_job(store))

    assert [len(labels) for _, labels in batches] == [12, 12, 12]
    # Turning an image moves its pixels but keeps their sorted values: a fingerprint.
    originals = scale_to_unit(store.counts(store.indices("train"))).flatten(1).sort(dim=1).values
    seen = torch.cat([images for images, _ in batches]).flatten(1).sort(dim=1).values
    rows = torch.cdist(seen.double(), originals.double()).argmin(dim=1)
    assert sorted(rows.tolist()) == list(range(36))
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.from_numpy(store.labels("train"))[rows])


def test_an_epoch_is_a_function_of_seed_and_number(store: Store) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return epoch_of(make_job(store, seed=seed), epoch)[0][0]

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_the_eight_turns_are_the_symmetries_of_the_square() -> None:
    image = torch.arange(4.0).reshape(1, 1, 2, 2)

    turned = turn(image.expand(8, 1, 2, 2), np.arange(8))

    found = {tuple(corner.flatten().int().tolist()) for corner in turned}
    # Corners 0 1 / 3 2 in order around the square, forwards and backwards.
    ring = [0, 1, 3, 2]
    rotations = {tuple(ring[(start + step * k) % 4] for k in range(4)) for start in range(4) for step in (1, -1)}
    assert found == {(a, b, d, c) for a, b, c, d in rotations}


def test_batches_are_the_same_from_workers(store: Store) -> None:
    job = make_job(store, stream=True)

    assert_same(epoch_of(job, 1, workers=2), epoch_of(job, 1))


def test_the_shares_of_two_processes_are_the_batch_of_one(store: Store) -> None:
    whole = epoch_of(make_job(store))

    shares = [epoch_of(make_job(store), share=Share(rank=rank, processes=2)) for rank in range(2)]

    for (images, labels), one, other in zip(whole, *shares, strict=True):
        assert torch.equal(images, torch.stack([one[0], other[0]], dim=1).flatten(0, 1))
        assert torch.equal(labels, torch.stack([one[1], other[1]], dim=1).flatten())


def test_a_batch_that_cannot_be_shared_evenly_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="a batch of 12 images cannot be shared by 5 processes"):
        Order(make_job(store), Share(rank=0, processes=5))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_validation_split_is_shared_whole(store: Store, processes: int) -> None:
    supply = StoredImages(store, "validation")
    seen = {
        int(number): image
        for rank in range(processes)
        for batch in [ValidationBatches(supply, 7, Share(rank=rank, processes=processes))]
        for index in range(len(batch))
        for number, image in zip(*batch[index], strict=True)
    }

    expected = scale_to_unit(store.counts(store.indices("validation")))
    assert torch.equal(torch.stack([seen[number] for number in range(7)]), expected)


def resident(store: Store) -> Supply:
    return ResidentImages(store, "train", "cpu")


@pytest.mark.parametrize("dtype", ["uint16", "float16", "float32"])
def test_resident_images_are_those_from_the_host(store: Store, tmp_path: Path, dtype: str) -> None:
    if dtype != "uint16":
        store = stored_as(store, tmp_path / "copy", dtype)
    numbers = np.array([3, 35, 0, 3])

    images, labels = resident(store).take(numbers)
    expected, their_labels = StoredImages(store, "train").take(numbers)

    assert torch.equal(images, expected)
    np.testing.assert_array_equal(labels, their_labels)


def stored_as(store: Store, folder: Path, dtype: str) -> Store:
    """Return *store* with its values as *dtype*, counts being half of them and one more."""
    folder.mkdir()
    np.save(folder / "images.npy", store.stored(np.arange(46)).astype(dtype))
    manifest = dataclasses.replace(store.manifest, dtype=dtype, scale=0.5, offset=1.0)
    return dataclasses.replace(store, folder=folder, manifest=manifest)


def test_counts_beyond_a_signed_integer_stay_what_they_are(store: Store, tmp_path: Path) -> None:
    counts = store.stored(np.arange(46))
    counts[store.indices("train")[0], 0, 0, 0] = 65535
    np.save(tmp_path / "images.npy", counts)
    bright = dataclasses.replace(store, folder=tmp_path)

    images, _ = resident(bright).take(np.array([0]))

    assert images[0, 0, 0, 0] == 1.0
    assert torch.equal(images, StoredImages(bright, "train").take(np.array([0]))[0])


@pytest.mark.parametrize("supply", [StoredImages, ResidentImages])
def test_an_image_that_is_not_finite_is_named(store: Store, tmp_path: Path, supply: type) -> None:
    holed = stored_as(store, tmp_path / "copy", "float32")
    values = np.load(holed.folder / "images.npy")
    values[holed.indices("train")[5], 0, 3, 3] = np.nan
    np.save(holed.folder / "images.npy", values)

    with pytest.raises(ValueError, match="not finite"):
        (supply(holed, "train", "cpu") if supply is ResidentImages else supply(holed, "train")).take(np.arange(6))


def test_a_stream_shows_the_stored_images_first(store: Store) -> None:
    assert_same(epoch_of(make_job(store, stream=True), 0), epoch_of(make_job(store), 0))


def test_a_stream_goes_on_as_a_larger_data_set_would(store: Store, tmp_path: Path) -> None:
    larger = simulate_dataset(CLASSES, Split(train=48, validation=1, test=1), tmp_path / "larger")
    numbers = np.arange(34, 48)

    images, labels = FreshImages(store).take(numbers)
    expected, their_labels = StoredImages(larger, "train").take(numbers)

    assert torch.equal(images, expected)
    np.testing.assert_array_equal(labels, their_labels)


def test_a_later_epoch_of_a_stream_shows_none_of_the_earlier_images(store: Store) -> None:
    order = Order(make_job(store, stream=True))
    numbers = []
    for epoch in range(3):
        order.set_epoch(epoch)
        numbers.extend(np.concatenate([chosen for chosen, _ in order]).tolist())

    assert sorted(numbers) == list(range(3 * 36))


def test_there_is_no_stream_of_images_that_were_not_simulated(store: Store) -> None:
    recipe = dataclasses.replace(store.manifest.recipe, sky="deeplense_classes")
    imported = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, recipe=recipe))

    with pytest.raises(ValueError, match="was not simulated"):
        FreshImages(imported)


def test_there_is_no_stream_from_another_simulator(store: Store) -> None:
    recipe = dataclasses.replace(store.manifest.recipe, simulator=1)
    old = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, recipe=recipe))

    with pytest.raises(ValueError, match="another simulator"):
        FreshImages(old)


def test_the_targets_of_a_regression_are_in_log10() -> None:
    torch.testing.assert_close(targets(MASS, np.array([0.01, 0.1])), torch.tensor([-2.0, -1.0]))
