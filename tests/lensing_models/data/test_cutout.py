"""FITS cutouts, one file an image or one cube, with a table of labels."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from lensing_models.data.candidate import BadFileError
from lensing_models.data.importing import import_archive, known_kinds
from lensing_models.data.store import Store
from lensing_models.specs import TaskSpec
from tests.lensing_models.data.packing import CLASSES, MASS, PACKINGS, SIDE, counts, pack

fits = pytest.importorskip("astropy.io.fits", reason="needs astropy: pip install 'lensing-bench[fits]'")
KIND = known_kinds()["fits"]


def fits_of(array: np.ndarray, *, extension: bool = False) -> bytes:
    """Return a FITS file with *array* in its first unit, or in an extension."""
    stream = io.BytesIO()
    units = [fits.PrimaryHDU(), fits.ImageHDU(array)] if extension else [fits.PrimaryHDU(array)]
    fits.HDUList(units).writeto(stream)
    return stream.getvalue()


def cutout_files(number: int = 10) -> dict[str, bytes]:
    return {f"cutouts/{index}.fits": fits_of(counts(index).astype(np.int16)) for index in range(number)}


def table_of(number: int = 10, key: str = "file", ending: str = ".fits") -> str:
    rows = [f"{index}{ending},{CLASSES.classes[index % 3]}" for index in range(number)]
    return "\n".join((f"{key},label", *rows, ""))


def imported(
    where: Path, files: dict[str, bytes] | Path, table: str, task: TaskSpec = CLASSES, packing: str = "folder"
) -> Store:
    labels = where / "labels.csv"
    labels.write_text(table)
    path = files if isinstance(files, Path) else pack(where, files, packing)
    return import_archive(KIND, path, task, where / "store", labels=labels)


def cube_file(where: Path, array: np.ndarray) -> Path:
    (where / "cube.fits").write_bytes(fits_of(array))
    return where / "cube.fits"


def cube(number: int = 10) -> np.ndarray:
    return np.stack([counts(index) for index in range(number)])


@pytest.mark.parametrize("packing", PACKINGS)
def test_cutouts_come_back_as_written(tmp_path: Path, packing: str) -> None:
    store = imported(tmp_path, cutout_files(), table_of(), packing=packing)

    written = np.array([counts(int(name[0])) for name in store.catalog["file"]])
    np.testing.assert_array_equal(store.counts(np.arange(10))[:, 0], written)


def test_a_keyword_that_astropy_ignores_harms_no_image(tmp_path: Path) -> None:
    files = cutout_files()
    name = next(iter(files))
    plain = fits.PrimaryHDU(counts(0).astype(np.float32))
    plain.header["BLANK"] = -1  # of integers only
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        plain.writeto(stream, output_verify="ignore")

    store = imported(tmp_path, {**files, name: stream.getvalue()}, table_of())

    assert sum(store.manifest.recipe.sizes.values()) == len(files)


def test_a_label_is_that_of_the_table(tmp_path: Path) -> None:
    catalog = imported(tmp_path, cutout_files(), table_of()).catalog

    assert catalog["label"].tolist() == [int(name[0]) % 3 for name in catalog["file"]]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_cube_comes_back_as_written(tmp_path: Path, dtype: type) -> None:
    store = imported(tmp_path, cube_file(tmp_path, cube().astype(dtype)), table_of(key="index", ending=""))

    written = cube()[[int(name) for name in store.catalog["file"]]]
    np.testing.assert_array_equal(store.counts(np.arange(10))[:, 0], written)


def test_an_image_may_lie_in_an_extension(tmp_path: Path) -> None:
    files = cutout_files() | {"cutouts/0.fits": fits_of(counts(0), extension=True)}

    assert len(imported(tmp_path, files, table_of()).catalog) == 10


def test_a_label_may_be_a_value(tmp_path: Path) -> None:
    table = "file,label\n" + "".join(f"{index}.fits,0.0{index + 1}\n" for index in range(9))

    catalog = imported(tmp_path, cutout_files(9), table, MASS).catalog

    assert sorted(catalog["mass_fraction"]) == [float(f"0.0{index}") for index in range(1, 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (fits_of(np.full((SIDE, SIDE), np.nan, np.float32)), "has a pixel that is not finite"),
        (fits_of(np.zeros((SIDE, SIDE + 1))), "holds an image of shape"),
        (fits_of(np.zeros((SIDE, SIDE)))[:-2880], "is truncated or damaged"),
        (fits_of(np.zeros((SIDE, SIDE)))[:1000], "is truncated or damaged"),
        (fits_of(np.zeros(SIDE)), "holds no image"),
        (b"", "is no FITS file"),
        (b"\x1f\x8b\x08", "is no FITS file, or a compressed one"),
    ],
)
def test_a_bad_cutout_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadFileError, match=rf"3\.fits {message}"):
        imported(tmp_path, cutout_files() | {"cutouts/3.fits": content}, table_of())


def test_a_bad_plane_is_named(tmp_path: Path) -> None:
    array = cube().astype(np.float32)
    array[3, 0, 0] = np.nan

    with pytest.raises(BadFileError, match=r"cube\.fits plane 3 has a pixel that is not finite"):
        imported(tmp_path, cube_file(tmp_path, array), table_of(key="index", ending=""))


def test_a_truncated_cube_is_named(tmp_path: Path) -> None:
    path = cube_file(tmp_path, cube(50))
    path.write_bytes(path.read_bytes()[:-5760])

    with pytest.raises(ValueError, match=r"cube\.fits.* is truncated or damaged"):
        imported(tmp_path, path, table_of(50, key="index", ending=""))


def test_an_image_is_no_cube(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cube\.fits holds an array of shape \(6, 6\), not a cube"):
        imported(tmp_path, cube_file(tmp_path, counts(0)), table_of(key="index", ending=""))


def test_a_file_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"9\.fits has no row in .*labels\.csv"):
        imported(tmp_path, cutout_files(), table_of(9))


def test_a_row_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"labels\.csv line 11: .* has no file '9\.fits'"):
        imported(tmp_path, cutout_files(9), table_of())


def test_a_row_without_a_plane_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"labels\.csv line 11: .* has no plane '9'; it has 0 to 8"):
        imported(tmp_path, cube_file(tmp_path, cube(9)), table_of(key="index", ending=""))


def test_an_unknown_class_names_line_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"line 2: unknown class 'spere'; known: no, sphere, vort"):
        imported(tmp_path, cutout_files(), table_of().replace("0.fits,no", "0.fits,spere"))


def test_a_file_twice_in_the_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 12: file '0\.fits' is already in"):
        imported(tmp_path, cutout_files(), table_of() + "0.fits,no\n")


def test_a_table_without_its_column_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.csv lacks the columns file; it has: index, label"):
        imported(tmp_path, cutout_files(), table_of(key="index"))


def test_a_table_that_is_not_named_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name it with --labels CSV"):
        import_archive(KIND, tmp_path, CLASSES, tmp_path / "store")


def test_without_astropy_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "astropy.io", None)

    with pytest.raises(ValueError, match=r"FITS needs astropy; install it: pip install 'lensing-bench\[fits\]'"):
        imported(tmp_path, cutout_files(), table_of())
