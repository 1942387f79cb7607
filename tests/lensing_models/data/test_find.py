from __future__ import annotations

from pathlib import Path

import pytest

from lensing_models.data.find import choose_tasks
from lensing_models.data.store import Store


def test_nobody_chose_so_the_tasks_are_those_of_the_data(store: Store, tmp_path: Path) -> None:
    (tmp_path / "substructure").symlink_to(store.folder)

    assert choose_tasks(None, "all", store.folder) == "substructure"
    assert choose_tasks(None, "resnet18", tmp_path) == "substructure"
    assert choose_tasks(None, "all", None) == "all"

    # Of several nothing is chosen: a network is fitted to what it is published on.
    (tmp_path / "halo_mass").symlink_to(store.folder)
    assert choose_tasks(None, "resnet18", tmp_path) == "all"


@pytest.mark.parametrize(
    ("tasks", "models"), [("all", "all"), ("halo_mass", "all"), ("", "all"), (None, "halo_mass/resnet18")]
)
def test_what_somebody_chose_stays_and_the_data_must_have_it(store: Store, tasks: str | None, models: str) -> None:
    assert choose_tasks(tasks, models, store.folder) == ("all" if tasks is None else tasks)


def test_a_folder_without_data_is_asked_for_all(tmp_path: Path) -> None:
    assert choose_tasks(None, "all", tmp_path) == "all"
