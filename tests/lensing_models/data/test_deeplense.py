"""The published DeepLense formats, packed in every way, come back as they were written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lensing_models.data.candidate import BadFileError
from lensing_models.data.importing import find_kind, import_archive
from lensing_models.data.store import Store, verify_store
from lensing_models.registry import find_task
from lensing_models.specs import TaskSpec
from tests.lensing_models.data.packing import (
    CLASSES,
    MASS,
    PACKINGS,
    SIDE,
    class_files,
    counts,
    mass_files,
    npy,
    pack,
    pair,
    scaled,
)


def imported(kind: str, files: dict[str, bytes], task: TaskSpec, where: Path, packing: str = "folder") -> Store:
    return import_archive(find_kind(kind), pack(where, files, packing), task, where / "store")


def model_files(number: int = 4, side: int = SIDE) -> dict[str, bytes]:
    """Return *number* images a class of a newer archive; axion masses are 1e-23 eV and up."""
    files = {}
    for index in range(number):
        files[f"Model/no_sub/no_sub_sim_{index}.npy"] = npy(scaled(index, side)[0])
        files[f"Model/cdm/cdm_sim_{index}.npy"] = npy(scaled(100 + index, side)[0])
        files[f"Model/axion/axion_sim_{index}.npy"] = pair(scaled(200 + index, side)[0], (1 + index) * 1e-23)
    return files


@pytest.mark.parametrize("packing", PACKINGS)
def test_classes_come_back_as_written(tmp_path: Path, packing: str) -> None:
    store = imported("deeplense_classes", class_files(), CLASSES, tmp_path, packing)
    files = [f"{part}/{name}/{index}.npy" for part, number in (("train", 10), ("val", 4)) for name in CLASSES.classes
             for index in range(number)]  # fmt: skip

    written = [scaled(files.index(file)) for file in store.catalog["file"]]

    np.testing.assert_array_equal(store.counts(np.arange(len(written))), np.array(written, np.float32))


def test_a_class_is_that_of_its_folder(tmp_path: Path) -> None:
    catalog = imported("deeplense_classes", class_files(), CLASSES, tmp_path).catalog

    assert catalog["label"].tolist() == [CLASSES.classes.index(name.split("/")[1]) for name in catalog["file"]]


def test_published_images_fit_the_published_task(tmp_path: Path) -> None:
    store = imported("deeplense_classes", class_files(10, 1, side=150), find_task("substructure"), tmp_path, "zip")

    assert verify_store(store.folder).manifest.recipe.sizes == {"train": 27, "validation": 3, "test": 3}


@pytest.mark.parametrize("packing", PACKINGS)
def test_masses_come_back_as_written(tmp_path: Path, packing: str) -> None:
    store = imported("deeplense_mass", mass_files(), MASS, tmp_path, packing)
    order = [int(name[5:7]) for name in store.catalog["file"]]

    np.testing.assert_array_equal(store.counts(np.arange(20))[:, 0], np.array([counts(index) for index in order]))
    np.testing.assert_array_equal(store.catalog["label"], [0.01 + index / 1000 for index in order])


def test_counts_are_stored_as_counts(tmp_path: Path) -> None:
    assert imported("deeplense_mass", mass_files(), MASS, tmp_path).manifest.dtype == "uint16"


def test_scaled_images_are_stored_as_float32(tmp_path: Path) -> None:
    assert imported("deeplense_classes", class_files(), CLASSES, tmp_path).manifest.dtype == "float32"


def test_published_masses_fit_the_published_task(tmp_path: Path) -> None:
    store = imported("deeplense_mass", mass_files(10, side=150), find_task("halo_mass"), tmp_path, "tgz")

    assert store.catalog["mass_fraction"].between(0.01, 0.02).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_models_come_back_as_written(tmp_path: Path, packing: str) -> None:
    store = imported("deeplense_models", model_files(), CLASSES, tmp_path, packing)
    written = [scaled({"n": 0, "c": 100, "a": 200}[name[0]] + int(name[-5]))[0] for name in store.catalog["file"]]

    np.testing.assert_array_equal(store.counts(np.arange(12))[:, 0], np.array(written, np.float32))


def test_models_name_their_class_by_the_files_prefix(tmp_path: Path) -> None:
    catalog = imported("deeplense_models", model_files(), CLASSES, tmp_path).catalog

    assert {(name[:3], cls) for name, cls in zip(catalog["file"], catalog["class"], strict=True)} == {
        ("no_", "no"),
        ("cdm", "sphere"),
        ("axi", "vort"),
    }


def test_axion_masses_are_in_the_catalogue_of_vortices(tmp_path: Path) -> None:
    catalog = imported("deeplense_models", model_files(), CLASSES, tmp_path).catalog

    masses = catalog.loc[catalog["class"] == "vort", "axion_mass_eV"]
    assert sorted(masses) == [1e-23, 2e-23, 3e-23, 4e-23]


def test_smaller_images_are_refused_where_the_task_takes_larger_ones(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"\.npy holds an image of shape \(64, 64\), task substructure takes"):
        imported("deeplense_models", model_files(1, side=64), find_task("substructure"), tmp_path)


def test_smaller_images_fit_a_task_of_their_shape(tmp_path: Path) -> None:
    task = dataclasses.replace(find_task("substructure"), image_shape=(1, 64, 64))

    store = imported("deeplense_models", model_files(4, side=64), task, tmp_path)

    assert store.manifest.recipe.image_shape == [1, 64, 64]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.full((SIDE, SIDE), np.nan)), "pixel that is not finite"),
        (npy(np.full((SIDE, SIDE), 1e39)), "pixel that is not finite"),
        (npy(np.zeros((SIDE, SIDE + 1))), "holds an image of shape"),
        (npy(np.zeros((3, SIDE, SIDE))), "holds an image of shape"),
        (npy(np.zeros((SIDE, SIDE), complex)), "not real numbers"),
        (npy(np.zeros((SIDE, SIDE), "U1")), "not real numbers"),
        (npy(scaled(0))[:-1], r"no readable \.npy file"),
        (b"", r"no readable \.npy file"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    files = class_files() | {"dataset/train/no/bad.npy": content}

    with pytest.raises(BadFileError, match=rf"bad\.npy .*{message}"):
        imported("deeplense_classes", files, CLASSES, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(counts(99)), r"not \[image, mass fraction\]"),
        (pair(counts(99), "heavy"), r"not hold \[image, mass fraction\]"),
        (pair(counts(99), np.array([0.1, 0.2])), r"not hold \[image, mass fraction\]"),
        (pair(np.float64(1), 0.1), r"not hold \[image, mass fraction\]"),
        (pair(counts(99), float("nan")), "mass fraction is not finite"),
        (pair(counts(99), 0.0), r"mass_fraction is 0\.0, beyond"),
        (pair(counts(99), 1.5), r"mass_fraction is 1\.5, beyond"),
        (pair(counts(99, 3), 0.1), "holds an image of shape"),
    ],
)
def test_a_bad_pair_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=rf"bad\.npy.*{message}"):
        imported("deeplense_mass", mass_files() | {"lens_data/bad.npy": content}, MASS, tmp_path)


@pytest.mark.parametrize("name", ["dataset/train/axion/1.npy", "dataset/1.npy", "dataset/test/no/1.npy"])
def test_a_file_without_a_label_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFileError, match=rf"{name} has no label"):
        imported("deeplense_classes", class_files() | {name: npy(scaled(99))}, CLASSES, tmp_path)


@pytest.mark.parametrize(("kind", "task"), [("deeplense_classes", MASS), ("deeplense_models", MASS)])
def test_classes_do_not_answer_a_regression(tmp_path: Path, kind: str, task: TaskSpec) -> None:
    with pytest.raises(ValueError, match="task halo_mass has no class 'no'; its classes: none"):
        imported(kind, class_files(), task, tmp_path)


def test_masses_do_not_answer_a_classification(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task substructure wants classes"):
        imported("deeplense_mass", mass_files(), CLASSES, tmp_path)
