"""Clean galaxies by the published thresholds, from Kaggle's files as delivered."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lensing_models.data.candidate import BadFileError
from lensing_models.data.galaxy_zoo import RULES, SOLUTIONS, name_classes, reduce_image
from lensing_models.data.importing import LEFT_OUT, find_kind, import_archive
from lensing_models.data.store import Store
from tests.lensing_models.data.packing import CLASSES, GALAXIES, PACKINGS, pack

ANSWERS = {1: 3, 2: 2, 3: 2, 4: 2, 5: 4, 6: 2, 7: 3, 8: 7, 9: 3, 10: 3, 11: 6}
COLUMNS = [f"Class{question}.{answer}" for question, number in ANSWERS.items() for answer in range(1, number + 1)]

#: Fractions of the answers to each question, and the class that the thresholds give.
VOTERS: list[tuple[dict[str, float], list[str]]] = [
    ({"smooth": 0.8, "round": 0.9, "between": 0.1}, ["round"]),
    ({"smooth": 0.6, "round": 0.2, "between": 0.7}, ["in_between"]),
    ({"smooth": 0.5, "cigar": 0.6, "between": 0.4}, ["cigar"]),
    ({"disk": 0.5, "edge_on": 0.7}, ["edge_on"]),
    ({"disk": 0.7, "edge_on": 0.1, "arms": 0.8}, ["spiral"]),
    ({"smooth": 0.8, "round": 0.5, "between": 0.5}, []),
    ({"smooth": 0.469, "round": 0.9}, []),
    ({"disk": 0.430, "edge_on": 0.9}, []),
    ({"disk": 0.9, "edge_on": 0.602, "arms": 0.9}, []),
    ({"disk": 0.9, "edge_on": 0.3, "arms": 0.9}, []),
    ({"disk": 0.9, "edge_on": 0.1, "arms": 0.619}, []),
    ({"smooth": 0.5, "round": 0.9, "disk": 0.45, "edge_on": 0.9}, ["round", "edge_on"]),
    ({"smooth": 0.0, "disk": 0.0}, []),
]


def votes_of(
    smooth: float = 0.0,
    round: float = 0.0,  # the name of the answer
    between: float = 0.0,
    cigar: float = 0.0,
    disk: float = 0.0,
    edge_on: float = 0.0,
    arms: float = 0.0,
) -> dict[str, float]:
    """Return the published columns: each answer's fraction times those on the way to its question."""
    votes = dict.fromkeys(COLUMNS, 0.0)
    votes |= {"Class1.1": smooth, "Class1.2": disk, "Class7.1": smooth * round, "Class7.2": smooth * between}
    votes |= {"Class7.3": smooth * cigar, "Class2.1": disk * edge_on, "Class2.2": disk * (1 - edge_on)}
    return votes | {"Class4.1": disk * (1 - edge_on) * arms, "Class4.2": disk * (1 - edge_on) * (1 - arms)}


def table(galaxies: Mapping[str, Mapping[str, float]]) -> bytes:
    rows = [",".join((galaxy, *(f"{votes[column]:.6f}" for column in COLUMNS))) for galaxy, votes in galaxies.items()]
    return "\n".join((",".join(("GalaxyID", *COLUMNS)), *rows, "")).encode()


def photograph(seed: int, size: tuple[int, int] = (424, 424), mode: str = "RGB") -> bytes:
    """Return a JPEG of smooth blobs that no other seed gives."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def kaggle_files(clean: int = 2) -> dict[str, bytes]:
    """Return *clean* galaxies a class, one in no class and one in two."""
    cases = [voters for voters, classes in VOTERS if len(classes) == 1] * clean
    cases += [VOTERS[5][0], VOTERS[11][0]]
    galaxies = {str(100008 + 15 * place): votes_of(**voters) for place, voters in enumerate(cases)}
    files = {f"images_training_rev1/{galaxy}.jpg": photograph(int(galaxy)) for galaxy in galaxies}
    return files | {SOLUTIONS: table(galaxies)}


def imported(where: Path, files: dict[str, bytes], packing: str = "folder", *, skip_bad: bool = False) -> Store:
    path = pack(where, files, packing)
    return import_archive(find_kind("galaxy_zoo"), path, GALAXIES, where / "store", skip_bad=skip_bad)


@pytest.mark.parametrize(("voters", "expected"), VOTERS, ids=str)
def test_classes_are_those_of_the_thresholds_within_each_question(
    voters: dict[str, float], expected: list[str]
) -> None:
    assert name_classes(votes_of(**voters)) == expected


def test_classes_are_in_label_order() -> None:
    assert tuple(RULES) == GALAXIES.classes


def test_an_image_is_the_average_of_its_centre() -> None:
    image = np.random.default_rng(0).integers(0, 256, (424, 424, 3), dtype=np.uint8)

    reduced = reduce_image(image)

    exact = np.array(Image.fromarray(image[108:316, 108:316]).reduce(2), dtype=int)
    assert np.abs(reduced.transpose(1, 2, 0) - exact).max() <= 1  # Pillow may round the half down
    block = image[108:110, 314:316, 1].astype(float)
    assert reduced[1, 0, 103] == np.floor(block.mean() + 0.5)


@pytest.mark.parametrize("packing", PACKINGS)
def test_images_come_back_as_pillow_decodes_them(tmp_path: Path, packing: str) -> None:
    store = imported(tmp_path, kaggle_files(), packing)
    galaxies = store.catalog["file"].tolist()

    decoded = [reduce_image(np.asarray(Image.open(io.BytesIO(photograph(int(name)))))) for name in galaxies]

    np.testing.assert_array_equal(store.counts(np.arange(10)), np.array(decoded, np.float32))


def test_the_zips_that_kaggle_delivers_are_read_in_their_folder(tmp_path: Path) -> None:
    files = kaggle_files()
    solutions = {SOLUTIONS: files.pop(SOLUTIONS)}
    (tmp_path / "kaggle").mkdir()
    pack(tmp_path, files, "zip").rename(tmp_path / "kaggle" / "images_training_rev1.zip")
    pack(tmp_path, solutions, "zip").rename(tmp_path / "kaggle" / "training_solutions_rev1.zip")

    store = import_archive(find_kind("galaxy_zoo"), tmp_path / "kaggle", GALAXIES, tmp_path / "store")

    assert len(store.catalog) == 10


def test_galaxies_are_stored_as_bytes(tmp_path: Path) -> None:
    manifest = imported(tmp_path, kaggle_files()).manifest

    assert (manifest.dtype, manifest.recipe.image_shape) == ("uint8", [3, 104, 104])


def test_a_galaxys_class_is_that_of_its_votes(tmp_path: Path) -> None:
    catalog = imported(tmp_path, kaggle_files()).catalog.sort_values("file")

    expected = [classes[0] for _, classes in VOTERS if len(classes) == 1] * 2
    assert catalog["class"].tolist() == expected
    assert catalog["label"].tolist() == [GALAXIES.classes.index(name) for name in expected]


def test_galaxies_without_one_class_are_counted_on_the_card(tmp_path: Path) -> None:
    card = (imported(tmp_path, kaggle_files()).folder / "CARD.md").read_text()

    assert "1 in no class, 1 in two classes" in card


def test_the_rule_stands_on_the_card(tmp_path: Path) -> None:
    card = (imported(tmp_path, kaggle_files()).folder / "CARD.md").read_text()

    assert "edge_on: Class1.2 > 0.430 and Class2.1 > 0.602" in card


def test_images_of_the_challenges_test_set_are_passed_over(tmp_path: Path) -> None:
    files = kaggle_files() | {"images_test_rev1/999999.jpg": photograph(1)}

    assert len(imported(tmp_path, files).catalog) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (photograph(1, size=(100, 424)), "is 100 x 424 px, RGB; not 424 x 424, RGB"),
        (photograph(1, mode="L"), "is 424 x 424 px, L; not 424 x 424, RGB"),
        (photograph(1)[:3000], "is truncated or no JPEG"),
        (b"", "is truncated or no JPEG"),
        (b"GIF89a", "is truncated or no JPEG"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=rf"100008\.jpg {message}"):
        imported(tmp_path, kaggle_files() | {"images_training_rev1/100008.jpg": content})


def test_a_galaxy_without_votes_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"777\.jpg has no valid row in training_solutions_rev1\.csv"):
        imported(tmp_path, kaggle_files() | {"images_training_rev1/777.jpg": photograph(7)})


def test_a_clean_galaxy_without_an_image_is_named(tmp_path: Path) -> None:
    files = kaggle_files()
    del files["images_training_rev1/100008.jpg"]

    with pytest.raises(BadFileError, match="files has no image of galaxy 100008"):
        imported(tmp_path, files)


def test_an_archive_without_votes_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no training_solutions_rev1\.csv; put it there or name it"):
        imported(tmp_path, {"images_training_rev1/1.jpg": photograph(1)})


def test_votes_may_lie_elsewhere(tmp_path: Path) -> None:
    files = kaggle_files()
    (tmp_path / "votes.csv").write_bytes(files.pop(SOLUTIONS))
    kind = find_kind("galaxy_zoo")

    store = import_archive(kind, pack(tmp_path, files), GALAXIES, tmp_path / "store", labels=tmp_path / "votes.csv")

    assert len(store.catalog) == 10


def test_votes_without_a_column_name_it(tmp_path: Path) -> None:
    files = kaggle_files()
    files[SOLUTIONS] = files[SOLUTIONS].replace(b"Class7.2", b"Class7.9")

    with pytest.raises(ValueError, match=r"training_solutions_rev1\.csv lacks the columns Class7\.2"):
        imported(tmp_path, files)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"5,0.1\n", "line 14 has 2 fields, the header 38"),
        (b"5" + b",1.5" * 37 + b"\n", r"line 14: Class1\.1 is 1\.5, not a fraction"),
        (b"5" + b",none" * 37 + b"\n", r"line 14: Class1\.1 is 'none', not a number"),
        (b"M31" + b",0" * 37 + b"\n", "line 14: GalaxyID is 'M31', not a number"),
    ],
)
def test_a_broken_row_names_its_line(tmp_path: Path, row: bytes, message: str) -> None:
    files = kaggle_files()
    files[SOLUTIONS] += row

    with pytest.raises(BadFileError, match=rf"training_solutions_rev1\.csv {message}"):
        imported(tmp_path, files)


def test_a_broken_row_can_be_skipped(tmp_path: Path) -> None:
    files = kaggle_files()
    files[SOLUTIONS] += b"5,0.1\n"

    store = imported(tmp_path, files, skip_bad=True)

    assert "line 14 has 2 fields" in (store.folder / LEFT_OUT).read_text()


def test_a_galaxy_twice_in_the_votes_is_an_error(tmp_path: Path) -> None:
    files = kaggle_files()
    files[SOLUTIONS] += files[SOLUTIONS].split(b"\n")[1] + b"\n"

    with pytest.raises(ValueError, match=r"line 14: GalaxyID '100008' is already in .* line 2"):
        imported(tmp_path, files, skip_bad=True)


def test_lens_tasks_are_no_tasks_of_galaxies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task substructure has no class 'round'; its classes: no, sphere, vort"):
        import_archive(find_kind("galaxy_zoo"), tmp_path, CLASSES, tmp_path / "store")
