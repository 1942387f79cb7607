"""An import is whole, repeatable and without images in two splits, or it leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from lensing_models.data import importing
from lensing_models.data.candidate import BadFileError
from lensing_models.data.importing import LEFT_OUT, find_kind, find_kinds_task, import_archive
from lensing_models.data.store import Store, verify_store
from tests.lensing_models.data.packing import (
    CLASSES,
    MASS,
    PACKINGS,
    Hostile,
    class_files,
    counts,
    mass_files,
    npy,
    pack,
    pair,
    scaled,
)

KIND = find_kind("deeplense_mass")


def imported(where: Path, files: dict[str, bytes], *, skip_bad: bool = False, seed: int = 0) -> Store:
    return import_archive(KIND, pack(where, files), MASS, where / "store", skip_bad=skip_bad, seed=seed)


def left_by(where: Path) -> list[str]:
    """Return what lies in *where* beside the archive."""
    return sorted(path.name for path in where.iterdir() if not path.name.startswith("files"))


def test_every_packing_gives_the_same_data(tmp_path: Path) -> None:
    stores = []
    for packing in PACKINGS:
        path = pack(tmp_path, mass_files(), packing)
        stores.append(import_archive(KIND, path, MASS, tmp_path / f"store_{packing}").manifest)

    assert len({(store.recipe_digest, store.content_sha256) for store in stores}) == 1


def test_another_seed_gives_other_splits(tmp_path: Path) -> None:
    path = pack(tmp_path, mass_files())

    stores = [import_archive(KIND, path, MASS, tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]

    files = [store.catalog["file"].tolist() for store in stores]
    assert sorted(files[0]) == sorted(files[1])
    assert files[0] != files[1]
    assert stores[0].manifest.archive == stores[1].manifest.archive != ""


@pytest.mark.parametrize(
    "change",
    [
        {"lens_data/lens_00.npy": pair(counts(99), np.float64(0.01))},
        {"lens_data/lens_00.npy": pair(counts(0), np.float64(0.02))},
    ],
    ids=["pixels", "label"],
)
def test_other_content_gives_another_recipe(tmp_path: Path, change: dict[str, bytes]) -> None:
    digests = []
    for place, files in enumerate((mass_files(), mass_files() | change)):
        (tmp_path / f"{place}").mkdir()
        digests.append(imported(tmp_path / f"{place}", files).recipe_digest)

    assert digests[0] != digests[1]


def test_an_import_verifies(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files())

    assert verify_store(store.folder).manifest.recipe.sky == "deeplense_mass"


def test_no_image_is_in_two_splits(tmp_path: Path) -> None:
    files = class_files()
    twins = {name.replace("train", "val"): content for name, content in files.items() if "train" in name}
    twins = {name.replace(".npy", "_twin.npy"): content for name, content in twins.items()}

    store = import_archive(find_kind("deeplense_classes"), pack(tmp_path, files | twins), CLASSES, tmp_path / "store")

    digests = {}
    for split in ("train", "validation", "test"):
        images = store.counts(store.indices(split))  # type: ignore[arg-type]  # a name of a split
        digests[split] = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    everything = [digest for split in digests.values() for digest in split]
    assert len(everything) == len(set(everything)) > 0


def test_of_two_equal_images_the_first_by_name_is_kept(tmp_path: Path) -> None:
    twin = {"lens_data/a_twin.npy": pair(counts(0).astype(float), np.float64(0.01))}

    store = imported(tmp_path, mass_files() | twin)

    names = set(store.catalog["file"])
    assert "a_twin.npy" in names
    assert "lens_00.npy" not in names


def test_dropped_duplicates_are_counted_on_the_card(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files() | {"lens_data/twin.npy": pair(counts(0), np.float64(0.01))})

    assert "Left out: 1 duplicate" in (store.folder / "CARD.md").read_text()


def test_dropped_duplicates_are_listed_with_their_twin(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files() | {"lens_data/twin.npy": pair(counts(0), np.float64(0.09))})

    listed = (store.folder / LEFT_OUT).read_text()
    assert 'duplicate,"twin.npy has the pixels of lens_00.npy, but label 0.09 instead of 0.01"' in listed


def test_the_same_file_twice_is_an_error(tmp_path: Path) -> None:
    files = mass_files() | {"copy/lens_00.npy": pair(counts(50), np.float64(0.05))}

    with pytest.raises(ValueError, match=r"'lens_00\.npy' is in the archive twice"):
        imported(tmp_path, files, skip_bad=True)


def test_a_bad_file_ends_the_import(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"bad\.npy .*--skip-bad leaves such files out"):
        imported(tmp_path, mass_files() | {"lens_data/bad.npy": b""})


def test_skipped_files_are_listed(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files() | {"lens_data/bad.npy": b""}, skip_bad=True)

    assert "bad.npy is no readable .npy file" in (store.folder / LEFT_OUT).read_text()


def test_skipped_files_are_counted_on_the_card(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files() | {"lens_data/bad.npy": b""}, skip_bad=True)

    assert "Left out: 1 bad" in (store.folder / "CARD.md").read_text()


def test_skipping_keeps_all_the_others(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files() | {"lens_data/bad.npy": b""}, skip_bad=True)

    assert len(store.catalog) == 20


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_hostile_file_runs_nothing(tmp_path: Path, skip_bad: bool) -> None:
    marker = tmp_path / "files_marker"
    files = mass_files() | {"lens_data/evil.npy": pair(counts(99), Hostile(marker))}

    if skip_bad:
        imported(tmp_path, files, skip_bad=True)
    else:
        with pytest.raises(BadFileError, match=r"evil\.npy .*asks for (posix|nt)\.system"):
            imported(tmp_path, files)

    assert not marker.exists()


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"x"}])
@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_without_images_says_what_was_expected(
    tmp_path: Path, packing: str, files: dict[str, bytes]
) -> None:
    (tmp_path / "files").mkdir()
    path = pack(tmp_path, files, packing)

    with pytest.raises(ValueError, match=r"files.* holds no usable image of kind deeplense_mass; expected: lens_data"):
        import_archive(KIND, path, MASS, tmp_path / "store")


def test_a_full_disk_is_said_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)

    with pytest.raises(OSError, match=r"the disk of .*store is full; it takes 1440 bytes"):
        imported(tmp_path, mass_files())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)

    with pytest.raises(OSError, match="nothing was left there"):
        imported(tmp_path, mass_files())

    assert left_by(tmp_path) == []


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no room for the images."""

    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)


def test_a_bad_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadFileError):
        imported(tmp_path, mass_files() | {"lens_data/bad.npy": b""})

    assert left_by(tmp_path) == []


def test_an_archive_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path, mass_files())
    monkeypatch.setattr(importing, "REPORT_EVERY", 20)

    def change(what: str, done: int, total: int | None) -> None:
        (path / "lens_data" / "lens_07.npy").write_bytes(pair(counts(77), np.float64(0.05)))

    with pytest.raises(ValueError, match=r"lens_07\.npy changed while"):
        import_archive(KIND, path, MASS, tmp_path / "store", progress=change)

    assert left_by(tmp_path) == []


def test_a_folder_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()

    with pytest.raises(FileExistsError, match="name another folder"):
        imported(tmp_path, mass_files())


def test_sizes_asked_for_are_those_of_the_store(tmp_path: Path) -> None:
    path = pack(tmp_path, mass_files())

    store = import_archive(KIND, path, MASS, tmp_path / "store", sizes={"train": 5, "validation": 2, "test": 1})

    assert store.manifest.recipe.sizes == {"train": 5, "validation": 2, "test": 1}


def test_the_card_holds_the_rule(tmp_path: Path) -> None:
    store = imported(tmp_path, mass_files())

    assert KIND.rule in (store.folder / "CARD.md").read_text()


def test_a_table_of_labels_beside_labels_inside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds its own labels; leave --labels out"):
        import_archive(KIND, tmp_path, MASS, tmp_path / "store", labels=tmp_path / "labels.csv")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(LookupError, match=r"unknown kind of archive 'deeplens_mass'; .* Did you mean 'deeplense_mass'"):
        find_kind("deeplens_mass")


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(LookupError, match="unknown task 'mass'; known: "):
        find_kinds_task(KIND, "mass")


def test_a_kind_without_a_task_asks_for_one() -> None:
    with pytest.raises(ValueError, match="name it with --task: "):
        find_kinds_task(find_kind("fits"), None)


def test_values_that_half_precision_holds_are_stored_so(tmp_path: Path) -> None:
    files = {f"train/no/{index}.npy": npy(np.round(scaled(index) * 64) / 64) for index in range(10)}
    files |= {f"val/no/{index}.npy": npy(np.round(scaled(20 + index) * 64) / 64) for index in range(2)}

    store = import_archive(find_kind("deeplense_classes"), pack(tmp_path, files), CLASSES, tmp_path / "store")

    assert store.manifest.dtype == "float16"
