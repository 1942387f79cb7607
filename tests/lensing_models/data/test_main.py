"""``python -m lensing_models.data``: codes and lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensing_models.data.store import Store, open_store
from tests.lensing_models.data.conftest import code_of


def test_simulate_makes_what_was_asked_for(tmp_path: Path) -> None:
    code = code_of("simulate", "--task", "halo_mass", "--train", "2", "--test", "1", "--out", str(tmp_path / "new"))

    assert code == 0
    assert open_store(tmp_path / "new").manifest.recipe.sizes == {"train": 2, "validation": 0, "test": 1}


def test_verify_of_an_intact_store_is_0(store: Store) -> None:
    assert code_of("verify", str(store.folder)) == 0


def test_verify_of_a_broken_store_is_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images.npy").write_bytes(b"")

    assert code_of("verify", str(folder)) == 1
    assert "images.npy" in capsys.readouterr().err


def test_info_says_what_is_in_a_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    code_of("info", str(store.folder))

    assert "9 train, 3 validation, 6 test; 6 no, 6 sphere, 6 vort" in capsys.readouterr().out


def test_show_draws_a_sheet(store: Store, tmp_path: Path) -> None:
    assert code_of("show", str(store.folder), "--out", str(tmp_path / "sheet.png")) == 0
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "argv",
    [
        ("verify", "nowhere"),
        ("show", "nowhere", "--out", "nowhere.png"),
        ("simulate", "--task", "nothing", "--train", "1", "--out", "nowhere"),
        ("simulate", "--task", "halo_mass", "--out", "nowhere"),
        ("simulate", "--task", "halo_mass", "--train", "1", "--sky", "model_2", "--out", "nowhere"),
        ("simulate", "--task", "halo_mass", "--train", "x", "--out", "nowhere"),
        ("import", "nothing", "nowhere", "--out", "new"),
        ("import", "deeplense_mass", "nowhere", "--out", "new"),
        ("import", "deeplense_mass", "nowhere"),
        ("import", "deeplense_mass", "nowhere", "--task", "nothing", "--out", "new"),
        ("import", "fits", "nowhere", "--out", "new"),
        ("import", "fits", "nowhere", "--task", "halo_mass", "--labels", "nowhere.csv", "--out", "new"),
        ("import", "deeplense_mass", "nowhere", "--train", "x", "--out", "new"),
        (),
    ],
)
def test_a_mistake_is_2_and_one_line(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*argv) == 2
    assert capsys.readouterr().err.count("\n") == 1
