"""A fit with logs: it validates, stops, keeps its best epoch, and goes on after a kill to the same weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lensing_models import fit as fitting
from lensing_models import loop
from lensing_models.checkpoint import Card
from lensing_models.curve import read_log, save_curve
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.fit import affordable_epochs, fit, new_network
from lensing_models.metrics import score
from lensing_models.network import LensNetwork
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_task
from lensing_models.specs import Schedule
from tests.lensing_models.test_fit import SMALL, make_job

CLASSES = find_task("substructure")
WHOLE = dataclasses.replace(PRESETS["standard"], name="tiny", epochs=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    sizes = Split(train=36, validation=12, test=9)
    return simulate_dataset(CLASSES, sizes, tmp_path_factory.mktemp("data") / "substructure")


def fit_in(folder: Path | None, store: Store, **changes: object) -> tuple[LensNetwork, Card]:
    arguments = {"preset": WHOLE, "seed": 0, "threads": 1, "device": "cpu", **changes}
    return fit(CLASSES, SMALL, store, folder=folder, **arguments)


@pytest.fixture(scope="module")
def fitted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[LensNetwork, Card, Path]:
    folder = tmp_path_factory.mktemp("fit")
    return *fit_in(folder, store), folder


def test_each_epoch_is_validated_and_logged(fitted: tuple[LensNetwork, Card, Path]) -> None:
    log = read_log(fitted[2])

    assert log["validation_auc"].dropna().between(0, 1).sum() == 4
    assert log["loss"].dropna().size > 0


def test_the_best_epoch_is_kept(fitted: tuple[LensNetwork, Card, Path]) -> None:
    _, card, folder = fitted
    judged = read_log(folder)["validation_auc"].dropna()

    # Lightning numbers the step of an epoch's end from 0, the card counts steps.
    assert card.steps == judged.idxmax() + 1


def test_a_finished_fit_leaves_logs_and_no_state(fitted: tuple[LensNetwork, Card, Path]) -> None:
    assert not list(fitted[2].glob("*.ckpt"))
    assert (fitted[2] / "attempt_0" / "metrics.csv").exists()


def test_the_learning_curve_is_drawn(fitted: tuple[LensNetwork, Card, Path]) -> None:
    path = save_curve(fitted[2], "auc", "a title")

    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_logs_there_is_no_curve(tmp_path: Path) -> None:
    assert save_curve(tmp_path, "auc", "a title") is None


class KilledError(Exception):
    """The process is gone."""


def test_a_fit_that_was_killed_ends_with_the_same_weights(
    store: Store, tmp_path: Path, fitted: tuple[LensNetwork, Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(outputs: object, labels: object, calls: list[int] = []) -> dict[str, float]:  # noqa: B006  it counts
        calls.append(1)
        if len(calls) == 3:
            raise KilledError
        return score(CLASSES, outputs, labels)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "score", lambda task, outputs, labels: die(outputs, labels))
        with pytest.raises(KilledError):
            fit_in(tmp_path, store)

    network, card = fit_in(tmp_path, store, resume=True)

    expected = fitted[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert card.steps == fitted[1].steps
    assert len(read_log(tmp_path)["validation_auc"].dropna()) == 4


def test_without_resume_a_fit_begins_anew(store: Store, tmp_path: Path) -> None:
    (tmp_path / loop.LAST).write_bytes(b"of another fit")

    _, card = fit_in(tmp_path, store)

    assert card.steps > 0


def test_a_fit_of_something_else_is_not_gone_on_with(store: Store, tmp_path: Path) -> None:
    fit_in(tmp_path, store)

    with pytest.raises(ValueError, match="is of another fit"):
        fit_in(tmp_path, store, resume=True, seed=1)


def test_a_fit_that_no_longer_improves_ends_early(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 1)
    worse = iter(range(100, 0, -1))
    monkeypatch.setattr(loop, "score", lambda *_: {"auc": next(worse) / 100})

    _, card = fit_in(tmp_path, store)

    assert card.steps == 3  # of the first epoch, the best; the second was the last
    assert len(read_log(tmp_path)["validation_auc"].dropna()) == 2


@pytest.mark.parametrize(("budget_s", "epochs"), [(1e-6, 1), (1e6, 4)])
def test_a_time_budget_cuts_the_epochs(store: Store, budget_s: float, epochs: int) -> None:
    job = make_job(store, SMALL, preset=WHOLE)

    assert affordable_epochs(job, new_network(job), "cpu", "32-true", budget_s) == epochs


def test_a_fit_cut_by_its_budget_is_not_converged_and_keeps_its_plan(store: Store, tmp_path: Path) -> None:
    _, card = fit_in(tmp_path, store, time_budget_s=1e-6)

    assert (card.epochs, card.converged) == (1, False)
    assert json.loads((tmp_path / fitting.PLAN).read_text())["epochs"] == 1


def test_outputs_without_a_number_end_a_fit(store: Store, tmp_path: Path) -> None:
    reckless = dataclasses.replace(SMALL, full=Schedule(batch_size=12, learning_rate=1e30))

    with pytest.raises(ValueError, match="diverged; lower its learning rate"):
        fit(CLASSES, reckless, store, preset=WHOLE, seed=0, threads=1, device="cpu", folder=tmp_path)
