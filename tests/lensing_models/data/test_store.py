"""A store is whole or refused, and says which file is wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensing_models.data.manifest import Recipe
from lensing_models.data.store import BusyError, Store, open_store, verify_store, write_store

RECIPE = Recipe(
    task="substructure",
    sky="none",
    sky_digest="",
    seed=0,
    sizes={"train": 2, "validation": 0, "test": 1},
    simulator=0,
    image_shape=(1, 2, 2),
    pixel_scale_arcsec=0.05,
)


def fill(path: Path) -> pd.DataFrame:
    """Write three images of 0, 1 and 2 counts."""
    images = np.lib.format.open_memmap(path, mode="r+")
    images[:] = np.arange(3).reshape(3, 1, 1, 1)
    images.flush()
    return pd.DataFrame({"split": ["train", "train", "test"], "index": [0, 1, 0], "label": [0, 1, 2]})


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_counts_are_what_was_written(tmp_path: Path) -> None:
    store = write_store(tmp_path / "new", RECIPE, fill, about="three images")

    counts = store.counts(np.array([2, 1]))

    np.testing.assert_array_equal(counts, np.array([2, 1], np.float32).reshape(2, 1, 1, 1) * np.ones((1, 2, 2)))
    assert counts.dtype == np.float32


def test_scale_and_offset_turn_stored_values_into_counts(tmp_path: Path) -> None:
    store = write_store(tmp_path / "new", RECIPE, fill, about="three images")
    scaled = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, scale=0.5, offset=10.0))

    assert scaled.counts(np.array([2])).max() == 11.0


def test_labels_come_by_split_in_order(tmp_path: Path) -> None:
    store = write_store(tmp_path / "new", RECIPE, fill, about="three images")

    assert (store.labels("train").tolist(), store.labels("test").tolist()) == ([0, 1], [2])


def test_a_split_without_images_is_empty(tmp_path: Path) -> None:
    store = write_store(tmp_path / "new", RECIPE, fill, about="three images")

    assert len(store.indices("validation")) == 0


def test_an_unknown_split_names_the_known_ones(store: Store) -> None:
    with pytest.raises(LookupError, match="known: train, validation, test"):
        store.indices("tset")  # type: ignore[arg-type]  # the mistake under test


def test_an_intact_store_verifies(store: Store) -> None:
    assert verify_store(store.folder) == store


def test_the_card_holds_both_digests(store: Store) -> None:
    card = (store.folder / "CARD.md").read_text()

    assert store.recipe_digest in card
    assert store.manifest.content_sha256 in card


def test_a_changed_count_is_found_by_verifying(folder: Path) -> None:
    path = folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match="content has SHA-256"):
        verify_store(folder)


@pytest.mark.parametrize("name", ["images.npy", "catalog.parquet", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ValueError, match=name):
        open_store(folder)


@pytest.mark.parametrize("name", ["images.npy", "catalog.parquet", "manifest.json"])
@pytest.mark.parametrize("keep", [0, 40, -10])
def test_a_truncated_file_is_named(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ValueError, match=name):
        open_store(folder)


def test_images_with_bytes_behind_them_are_refused(folder: Path) -> None:
    with (folder / "images.npy").open("ab") as stream:
        stream.write(b"more")

    with pytest.raises(ValueError, match=r"images\.npy has bytes behind"):
        open_store(folder)


def test_images_of_another_shape_are_refused(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((2, 1, 3, 3), np.uint16))

    with pytest.raises(ValueError, match=r"images\.npy holds uint16 \(2, 1, 3, 3\)"):
        open_store(folder)


def test_an_array_of_objects_is_never_unpickled(folder: Path) -> None:
    np.save(folder / "images.npy", np.array([{}], dtype=object))

    with pytest.raises(ValueError, match=r"images\.npy is missing, truncated or no array"):
        open_store(folder)


def test_a_lost_row_is_found(folder: Path) -> None:
    path = folder / "catalog.parquet"
    pd.read_parquet(path).iloc[:-1].to_parquet(path, index=False)

    with pytest.raises(ValueError, match=r"catalog\.parquet has rows"):
        open_store(folder)


def test_an_unknown_schema_names_the_known_one(folder: Path) -> None:
    change_manifest(folder, schema=99)

    with pytest.raises(ValueError, match="unknown schema 99; known: 1"):
        open_store(folder)


def test_an_edited_recipe_is_found(folder: Path, store: Store) -> None:
    change_manifest(folder, recipe=dataclasses.asdict(store.manifest.recipe) | {"seed": 4})

    with pytest.raises(ValueError, match="it was edited"):
        open_store(folder)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_cannot_go_on_later_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path) -> pd.DataFrame:
        raise error

    with pytest.raises(type(error)):
        write_store(tmp_path / "new", RECIPE, fail, about="")

    assert not list(tmp_path.iterdir())


def interrupt(path: Path) -> pd.DataFrame:
    """Write one image and be interrupted."""
    images = np.lib.format.open_memmap(path, mode="r+")
    images[0] = 7
    images.flush()
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Return where a store would lie whose writer was interrupted."""
    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path / "new", RECIPE, interrupt, about="", work="by threes")
    assert not (tmp_path / "new").exists()
    return tmp_path / "new"


def test_unfinished_work_is_gone_on_with(begun: Path) -> None:
    seen: list[int] = []

    def look(path: Path) -> pd.DataFrame:
        seen.append(int(np.load(path, mmap_mode="r")[0].max()))
        return fill(path)

    write_store(begun, RECIPE, look, about="", work="by threes", resume=True)

    assert seen == [7]
    assert [path.name for path in begun.parent.iterdir()] == ["new"]
    assert {path.name for path in begun.iterdir()} == {"images.npy", "catalog.parquet", "manifest.json", "CARD.md"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "unfinished work; add --resume"),
        ({"recipe": dataclasses.replace(RECIPE, seed=1), "resume": True}, "unfinished work on other data"),
        ({"work": "by fours", "resume": True}, "unfinished work on other data"),
        ({"work": ""}, "unfinished work on other data"),  # an import, which cannot be gone on with
    ],
)
def test_unfinished_work_is_not_lost_unasked(begun: Path, changes: dict[str, object], message: str) -> None:
    arguments = {"recipe": RECIPE, "fill": fill, "about": "", "work": "by threes", **changes}

    with pytest.raises(ValueError, match=message):
        write_store(begun, **arguments)

    assert (begun.with_name(".new.partial") / "begun").exists()


def test_a_second_writer_of_the_same_store_is_refused(tmp_path: Path) -> None:
    def write_again(path: Path) -> pd.DataFrame:
        with pytest.raises(BusyError, match="another process is writing"):
            write_store(tmp_path / "new", RECIPE, fill, about="")
        return fill(path)

    write_store(tmp_path / "new", RECIPE, write_again, about="")


def test_a_catalogue_with_too_few_rows_never_becomes_a_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has rows .*, the manifest says"):
        write_store(tmp_path / "new", RECIPE, lambda path: fill(path).iloc[:-1], about="")

    assert not list(tmp_path.iterdir())


def test_what_a_dead_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "images.npy").write_bytes(b"of an import that was killed")

    write_store(tmp_path / "new", RECIPE, fill, about="")

    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_exists_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="name another folder"):
        write_store(folder, RECIPE, fill, about="")


def test_a_folder_filled_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def lose_the_race(path: Path) -> pd.DataFrame:
        (tmp_path / "new" / "theirs").mkdir(parents=True)
        return fill(path)

    with pytest.raises(FileExistsError, match="came to be"):
        write_store(tmp_path / "new", RECIPE, lose_the_race, about="")

    assert [path.name for path in tmp_path.rglob("*")] == ["new", "theirs"]
