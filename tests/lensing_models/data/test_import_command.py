"""``python -m lensing_models.data import``: codes, lines and what is said meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensing_models.data import importing
from lensing_models.data.store import open_store
from tests.lensing_models.data.conftest import code_of
from tests.lensing_models.data.packing import class_files, mass_files, pack


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Return a mass archive of the published shape."""
    return str(pack(tmp_path, mass_files(20, side=150), "tgz"))


def test_import_makes_what_was_asked_for(tmp_path: Path, archive: str) -> None:
    argv = ("import", "deeplense_mass", archive, "--train", "5", "--test", "0", "--out", str(tmp_path / "new"))

    assert code_of(*argv) == 0
    assert open_store(tmp_path / "new").manifest.recipe.sizes == {"train": 5, "validation": 2, "test": 0}


def test_import_says_what_it_made(tmp_path: Path, archive: str, capsys: pytest.CaptureFixture[str]) -> None:
    code_of("import", "deeplense_mass", archive, "--out", str(tmp_path / "new"))

    assert "images: 16 train, 2 validation, 2 test; 20 sphere" in capsys.readouterr().out


def test_import_shows_how_far_it_is(tmp_path: Path, archive: str, capsys: pytest.CaptureFixture[str]) -> None:
    code_of("import", "deeplense_mass", archive, "--out", str(tmp_path / "new"))

    assert "copy deeplense_mass: 20/20" in capsys.readouterr().err


def test_import_shows_the_first_look_too(
    tmp_path: Path, archive: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "REPORT_EVERY", 10)

    code_of("import", "deeplense_mass", archive, "--out", str(tmp_path / "new"))

    assert "read deeplense_mass: 20 \n" in capsys.readouterr().err


def test_an_import_can_be_described_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pack(tmp_path, class_files(10, 1, side=150))
    code_of("import", "deeplense_classes", str(path), "--out", str(tmp_path / "new"))

    assert code_of("info", str(tmp_path / "new")) == 0
    assert "sky deeplense_classes" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["21", "-1"])
def test_a_size_that_cannot_be_is_2(
    tmp_path: Path, archive: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code_of("import", "deeplense_mass", archive, "--test", size, "--out", str(tmp_path / "new"))

    assert code == 2
    assert f"{size} test images asked for" in capsys.readouterr().err
