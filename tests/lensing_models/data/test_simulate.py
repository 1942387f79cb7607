"""An image depends on (sky, seed, split, index) alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensing_models.data import simulate
from lensing_models.data.draw import image_stream
from lensing_models.data.simulate import SOURCES, ensure_dataset, make_recipe, simulate_dataset, simulate_images
from lensing_models.data.sky import SKIES
from lensing_models.data.store import Store, open_store
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_task
from tests.lensing_models.data.conftest import SIZES

SUBSTRUCTURE, HALO_MASS = find_task("substructure"), find_task("halo_mass")
DEFAULT, MODEL_I = SOURCES[simulate.DEFAULT_SKY], SOURCES["model_i"]
TINY = dataclasses.replace(PRESETS["quick"], split={"default": Split(train=3, validation=0, test=3)})


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(6)), size=st.sampled_from([1, 3, 8]))
def test_an_image_does_not_depend_on_what_is_made_beside_it(store: Store, order: list[int], size: int) -> None:
    chunks = [order[start : start + size] for start in range(0, len(order), size)]

    images = np.concatenate([simulate_images(SUBSTRUCTURE, DEFAULT, "test", chunk, seed=3)[0] for chunk in chunks])

    np.testing.assert_array_equal(images, store.counts(store.indices("test")[order]))


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_store_has_the_same_bytes_for_any_chunk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(simulate, "CHUNK_IMAGES", chunk)

    again = simulate_dataset(SUBSTRUCTURE, SIZES, tmp_path / "again", seed=3)

    assert again.manifest == store.manifest


def test_a_store_has_the_same_bytes_for_four_workers(store: Store, tmp_path: Path) -> None:
    again = simulate_dataset(SUBSTRUCTURE, SIZES, tmp_path / "again", seed=3, workers=4)

    assert again.manifest == store.manifest


def test_a_smaller_split_begins_a_larger_one(store: Store, tmp_path: Path) -> None:
    small = simulate_dataset(SUBSTRUCTURE, Split(train=0, validation=0, test=2), tmp_path / "small", seed=3)

    np.testing.assert_array_equal(small.counts(np.arange(2)), store.counts(store.indices("test")[:2]))


def test_no_image_is_in_two_splits(store: Store) -> None:
    images = store.counts(np.arange(len(store.catalog)))

    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_another_seed_gives_other_images(store: Store) -> None:
    images, _ = simulate_images(SUBSTRUCTURE, DEFAULT, "test", range(6), seed=4)

    assert not any(np.array_equal(*pair) for pair in zip(images, store.counts(store.indices("test")), strict=True))


def test_classes_come_in_equal_parts(store: Store) -> None:
    assert np.bincount(store.labels("train")).tolist() == [3, 3, 3]


def test_the_catalogue_holds_each_subhalo(store: Store) -> None:
    catalog = store.catalog
    sky = SKIES[simulate.DEFAULT_SKY]
    radii = catalog["subhalo_theta_E"].map(lambda column: float(np.square(column).sum()))

    # Einstein radii add up in square, as masses do.
    np.testing.assert_allclose(radii * sky.halo_mass / sky.theta_E_of(sky.halo_mass) ** 2, catalog["subhalo_mass"])
    assert (catalog["subhalo_x"].map(len) == catalog["n_subhalos"]).all()


def test_a_label_is_the_place_of_its_class(store: Store) -> None:
    names = [SUBSTRUCTURE.classes[label] for label in store.catalog["label"]]

    assert names == store.catalog["class"].tolist()


def test_labels_of_a_regression_are_the_true_values(tmp_path: Path) -> None:
    store = simulate_dataset(HALO_MASS, Split(train=4, validation=0, test=0), tmp_path / "mass")

    np.testing.assert_array_equal(store.labels("train"), store.catalog["subhalo_mass"] / 1e12)


def test_every_label_of_a_regression_is_valid() -> None:
    _, rows = simulate_images(HALO_MASS, DEFAULT, "train", range(30))
    low, high = HALO_MASS.targets[0].valid

    assert all(low <= row["label"] <= high for row in rows)


def test_the_brightest_pixel_of_model_i_stands_out_of_the_noise() -> None:
    images, rows = simulate_images(SUBSTRUCTURE, MODEL_I, "test", range(18))
    noise = [row["exposure"] * row["background_rms"] for row in rows]

    # The rms of the background is 0.01 counts/s; a peak of about 21 of it is the authors' setting.
    assert np.median(images.max(axis=(1, 2, 3)) / noise) == pytest.approx(21, rel=0.3)


def test_corners_of_the_default_sky_are_as_noisy_as_the_archives() -> None:
    images, _ = simulate_images(SUBSTRUCTURE, DEFAULT, "test", range(12))
    peaks = images.max(axis=(1, 2, 3))
    corners = images[:, 0, :10, :10].reshape(len(images), -1)

    # Their thumbnails: an rms of 0.2 to 0.4 % of the peak on a pedestal of 1 to 2 %; 100 pixels tell
    # an rms to 7 %, and noise lifts the peak.
    assert np.all((corners.std(axis=1) / peaks > 0.0014) & (corners.std(axis=1) / peaks < 0.0048))
    assert np.all((corners.mean(axis=1) / peaks > 0.009) & (corners.mean(axis=1) / peaks < 0.023))


@pytest.mark.parametrize("sky", SKIES)
def test_every_sky_shows_what_its_catalogue_says(sky: str) -> None:
    images, rows = simulate_images(SUBSTRUCTURE, SOURCES[sky], "test", range(6))

    assert images.shape == (6, 1, 150, 150)
    assert [row["class"] for row in rows] == ["no", "sphere", "vort"] * 2
    assert [row["mass_fraction"] > 0 for row in rows] == [False, True, True] * 2


def test_a_sky_whose_fraction_never_varies_has_no_data_for_it() -> None:
    with pytest.raises(ValueError, match="mass fraction never varies"):
        make_recipe(HALO_MASS, SIZES, sky="pylensing")


def test_a_killed_simulation_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lensing_models.data", "simulate", "--task", "substructure", "--train", "240"]
    argv += ["--workers", "2", "--out", str(tmp_path / "new")]
    whole = simulate_dataset(SUBSTRUCTURE, Split(train=240, validation=0, test=0), tmp_path / "whole")
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while not [path for path in tmp_path.glob(".new.partial/chunks.jsonl") if path.stat().st_size]:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (journal,) = tmp_path.glob(".new.partial/chunks.jsonl")
    begun = journal.read_text().count("\n")

    done = subprocess.run([*argv, "--resume"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert 0 < begun < 10
    assert open_store(tmp_path / "new").manifest == whole.manifest
    assert not list(tmp_path.glob(".new*"))


@pytest.mark.parametrize("torn", ['{"row": 0, "cat', '{"row": 0, "catalog": []}\n', ""])
def test_a_journal_is_believed_as_far_as_it_is_whole(tmp_path: Path, torn: str) -> None:
    chunks = [
        simulate._Chunk(split="train", start=0, stop=2, row=0),
        simulate._Chunk(split="train", start=2, stop=3, row=2),
    ]
    whole = json.dumps({"row": 2, "catalog": [{"split": "train"}]}) + "\n"
    path = tmp_path / "chunks.jsonl"

    for content, expected in ((torn, []), (whole + torn, [2])):
        path.write_text(content)
        assert list(simulate._read_journal(path, chunks)) == expected
        assert path.read_text() == (whole if expected else "")


def test_a_worker_that_dies_costs_nothing_that_was_finished(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lensing_models.data", "simulate", "--task", "substructure", "--train", "960"]
    argv += ["--workers", "2", "--out", str(tmp_path / "new")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".new.partial" / "chunks.jsonl"
    while not journal.exists() or not journal.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    worker = next(
        child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
    )
    worker.kill()

    _, told = process.communicate(timeout=120)

    assert process.returncode == 2
    assert told.splitlines()[-1].startswith("error: a worker died")
    assert journal.read_text().count("\n") >= 1


def test_what_is_true_of_an_image_does_not_depend_on_the_batch() -> None:
    streams = [image_stream(0, "test", index) for index in range(3)]

    _, together = DEFAULT.make(SUBSTRUCTURE, range(3), streams, "cpu")

    _, alone = simulate_images(SUBSTRUCTURE, DEFAULT, "test", range(3))
    for one, other in zip(together, alone, strict=True):
        # The exposure follows the image's peak, which a batch changes in the last bit.
        assert one["exposure"] == pytest.approx(other["exposure"], rel=1e-6)
        assert one["source_x"] == other["source_x"]


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ValueError, match="no usable GPU"):
        simulate_dataset(SUBSTRUCTURE, SIZES, tmp_path / "new", device="cuda")

    assert not list(tmp_path.iterdir())


def test_the_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    simulate_dataset(
        HALO_MASS,
        Split(train=25, validation=0, test=2),
        tmp_path / "mass",
        progress=lambda done, total: calls.append((done, total)),
    )

    assert calls == [(24, 27), (25, 27), (27, 27)]


def test_data_in_the_cache_are_not_made_again(tmp_path: Path) -> None:
    first = ensure_dataset(SUBSTRUCTURE, TINY, tmp_path)
    before = (first.folder / "images.npy").stat().st_mtime_ns

    again = ensure_dataset(SUBSTRUCTURE, TINY, tmp_path)

    assert (again.folder / "images.npy").stat().st_mtime_ns == before


def test_damaged_data_in_the_cache_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = ensure_dataset(SUBSTRUCTURE, TINY, tmp_path)
    (first.folder / "catalog.parquet").write_bytes(b"")

    with caplog.at_level(logging.WARNING):
        again = ensure_dataset(SUBSTRUCTURE, TINY, tmp_path)

    assert again.manifest == first.manifest
    assert "catalog.parquet" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [{"sky_digest": "other"}, {"seed": 1}, {"simulator": 99}, {"task": "other"}, {"image_shape": (1, 64, 64)}],
)
def test_whatever_decides_the_data_is_in_the_digest(changes: dict[str, object]) -> None:
    recipe = make_recipe(SUBSTRUCTURE, SIZES)

    assert dataclasses.replace(recipe, **changes).digest != recipe.digest


def test_an_unknown_sky_names_the_nearest() -> None:
    with pytest.raises(LookupError, match="Did you mean 'model_i'"):
        make_recipe(SUBSTRUCTURE, SIZES, sky="model_1")


def test_a_task_that_is_not_about_lenses_is_refused() -> None:
    with pytest.raises(ValueError, match="is not about"):
        make_recipe(dataclasses.replace(SUBSTRUCTURE, lens_classes=("spiral",)), SIZES)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (-1, 2, 3)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="sizes must not be"):
        make_recipe(SUBSTRUCTURE, Split(train=sizes[0], validation=sizes[1], test=sizes[2]))


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        simulate_dataset(SUBSTRUCTURE, SIZES, tmp_path / "new", workers=0)
