"""One small data set that the tests of the store share, and the command line of the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lensing_models.command_line import run_main
from lensing_models.data.__main__ import main
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.preset import Split
from lensing_models.registry import find_task

SIZES = Split(train=9, validation=3, test=6)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a data set of `substructure` that must be left as it is."""
    return simulate_dataset(find_task("substructure"), SIZES, tmp_path_factory.mktemp("data") / "small", seed=3)


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    """Return a copy of its folder that a test may damage."""
    return Path(shutil.copytree(store.folder, tmp_path / "copy"))


def code_of(*argv: str) -> int:
    """Return the exit code of ``python -m lensing_models.data`` with these arguments."""
    with pytest.raises(SystemExit) as exit_info:
        run_main(main, argv)
    code = exit_info.value.code
    assert isinstance(code, int)
    return code
