"""A fit with logs: it validates, stops, keeps its best epoch, and goes on after a kill to the same weights."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lensing_models import fit_module, loop
from lensing_models.checkpoint import Card, read_card, write_checkpoint
from lensing_models.curve import read_log, save_curve
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.fit import fit, new_network
from lensing_models.fit_module import Means
from lensing_models.fit_plan import PLAN, affordable_epochs
from lensing_models.metrics import score
from lensing_models.network import LensNetwork
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.specs import Schedule, TaskSpec
from tests.lensing_models.test_batches import stored_as
from tests.lensing_models.test_checkpoint import CARD
from tests.lensing_models.test_fit import SMALL, make_job

CLASSES = find_task("substructure")
WHOLE = dataclasses.replace(PRESETS["standard"], name="tiny", epochs={"default": 4})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    sizes = Split(train=36, validation=12, test=9)
    return simulate_dataset(CLASSES, sizes, tmp_path_factory.mktemp("data") / "substructure")


def fit_in(folder: Path | None, store: Store, **changes: object) -> tuple[LensNetwork, Card]:
    asked = {name: changes.pop(name) for name in ("seed", "stream", "teacher") if name in changes}
    return fit(make_job(store, preset=WHOLE, **asked), threads=1, device="cpu", folder=folder, **changes)


@pytest.fixture(scope="module")
def fitted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[LensNetwork, Card, Path]:
    folder = tmp_path_factory.mktemp("fit")
    return *fit_in(folder, store), folder


def test_each_epoch_is_validated_and_logged(fitted: tuple[LensNetwork, Card, Path]) -> None:
    log = read_log(fitted[2])

    assert log["validation_auc"].dropna().between(0, 1).sum() == 4
    assert log["loss"].dropna().size > 0


def test_each_epoch_s_validation_is_told(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fit_in(tmp_path, store)

    judged = read_log(tmp_path)["validation_auc"].dropna()
    told = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines() if " epoch " in line]
    assert told == [
        f"{step + 1}/12 epoch {epoch} of 4: validation auc {auc:.4g}"
        for epoch, (step, auc) in enumerate(judged.items(), 1)
    ]


def test_the_best_epoch_is_kept(fitted: tuple[LensNetwork, Card, Path]) -> None:
    _, card, folder = fitted
    judged = read_log(folder)["validation_auc"].dropna()

    # Lightning numbers the step of an epoch's end from 0, the card counts steps.
    assert card.steps == judged.idxmax() + 1


def test_a_fit_leaves_its_logs_and_its_state_until_the_checkpoint_is_written(
    fitted: tuple[LensNetwork, Card, Path],
) -> None:
    assert (fitted[2] / loop.LAST).exists()
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
        patched.setattr(fit_module, "score", lambda task, outputs, labels: die(outputs, labels))
        with pytest.raises(KilledError):
            fit_in(tmp_path, store)

    network, card = fit_in(tmp_path, store, resume=True)

    expected = fitted[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert card.steps == fitted[1].steps
    assert len(read_log(tmp_path)["validation_auc"].dropna()) == 4


def test_without_resume_a_fit_begins_anew(store: Store, tmp_path: Path) -> None:
    (tmp_path / loop.LAST).write_bytes(b"of another fit")
    (tmp_path / "attempt_0").mkdir()
    (tmp_path / "attempt_0" / "metrics.csv").write_text("epoch,step,loss\n90,270,0.1\n")

    _, card = fit_in(tmp_path, store)

    assert card.steps > 0
    assert read_log(tmp_path).index.max() < 12


def test_a_fit_goes_on_in_a_folder_that_was_moved_and_keeps_its_best_epoch(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = [0.9, 0.5]

    def judge(*_: object) -> dict[str, float]:
        if not judged:
            raise KilledError
        return {"auc": judged.pop(0)}

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "score", judge)
        with pytest.raises(KilledError):
            fit_in(tmp_path / "old", store)
    (tmp_path / "old").rename(tmp_path / "new")

    monkeypatch.setattr(fit_module, "score", lambda *_: {"auc": 0.6})
    _, card = fit_in(tmp_path / "new", store, resume=True)

    assert card.steps == 3  # of the first epoch, whose 0.9 nothing has beaten


def test_a_fit_that_was_killed_when_its_patience_was_over_trains_no_more(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 1)
    monkeypatch.setattr(fit_module, "score", lambda *_: {"auc": 0.5})
    _, first = fit_in(tmp_path, store)

    _, again = fit_in(tmp_path, store, resume=True)

    assert again.steps == first.steps
    assert len(read_log(tmp_path)["validation_auc"].dropna()) == 2


def test_a_fit_whose_plan_is_lost_says_so(store: Store, tmp_path: Path) -> None:
    fit_in(tmp_path, store)
    (tmp_path / PLAN).write_text("")

    with pytest.raises(ValueError, match=f"{PLAN} does not say what fit was begun"):
        fit_in(tmp_path, store, resume=True)


def test_a_network_that_may_know_the_test_images_is_no_teacher(store: Store, tmp_path: Path) -> None:
    recipe = dataclasses.replace(store.manifest.recipe, sky="deeplense_classes")
    imported = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, recipe=recipe))
    card = dataclasses.replace(CARD, task=CLASSES.name, sky="deeplense_classes", recipe_digest="of another split")
    teacher = write_checkpoint(new_network(make_job(store)), tmp_path, card)

    with pytest.raises(ValueError, match="may know the test images"):
        fit_in(None, imported, teacher=teacher)


def test_an_image_without_a_number_is_one_line_from_a_worker_too(store: Store, tmp_path: Path) -> None:
    holed = stored_as(store, tmp_path / "data", "float32")
    values = np.load(holed.folder / "images.npy")
    values[:36, 0, 3, 3] = np.nan
    np.save(holed.folder / "images.npy", values)

    with pytest.raises(ValueError, match=f"^{holed.folder}, train images .* not finite$"):
        fit_in(tmp_path / "fit", holed, workers=1)


def test_ctrl_c_is_ctrl_c(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "task_loss", press)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit_in(None, store)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on


def test_a_fit_of_something_else_is_not_gone_on_with(store: Store, tmp_path: Path) -> None:
    fit_in(tmp_path, store)

    with pytest.raises(ValueError, match="is of another fit"):
        fit_in(tmp_path, store, resume=True, seed=1)


def test_a_fit_is_logged_for_tensorboard_too(fitted: tuple[LensNetwork, Card, Path]) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'lensing-bench[tensorboard]'")

    (events,) = fitted[2].glob("attempt_*/events.out.tfevents.*")

    content = events.read_bytes()
    assert b"loss" in content
    assert b"validation_" in content


def test_a_fit_is_not_gone_on_with_at_another_batch_size(store: Store, tmp_path: Path) -> None:
    fit_in(tmp_path, store)
    plan = tmp_path / "fit.json"
    begun = json.loads(plan.read_text())
    (tmp_path / "last.ckpt").write_bytes(b"never read")

    plan.write_text(json.dumps({**begun, "batch_size": 64}))
    with pytest.raises(ValueError, match="is of another fit"):
        fit_in(tmp_path, store, resume=True)


def test_a_fit_that_no_longer_improves_ends_early(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 1)
    worse = iter(range(100, 0, -1))
    monkeypatch.setattr(fit_module, "score", lambda *_: {"auc": next(worse) / 100})

    _, card = fit_in(tmp_path, store)

    assert card.steps == 3  # of the first epoch, the best; the second was the last
    assert len(read_log(tmp_path)["validation_auc"].dropna()) == 2


@pytest.mark.parametrize(("budget_s", "epochs"), [(1e-6, 1), (1e6, 4)])
def test_a_time_budget_cuts_the_epochs(store: Store, budget_s: float, epochs: int) -> None:
    job = make_job(store, SMALL, preset=WHOLE)

    assert affordable_epochs(job, new_network(job), Means(), None, budget_s) == epochs


def test_a_fit_cut_by_its_budget_is_not_converged_and_keeps_its_plan(store: Store, tmp_path: Path) -> None:
    _, card = fit_in(tmp_path, store, time_budget_s=1e-6)

    assert (card.epochs, card.converged) == (1, False)
    assert card.state == "unconverged"  # no preset of this name says how long it should have been
    assert json.loads((tmp_path / PLAN).read_text())["epochs"] == 1


def test_a_full_disk_ends_a_fit_and_keeps_the_state_of_the_epoch_before(
    store: Store, tmp_path: Path, fitted: tuple[LensNetwork, Card, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(task: TaskSpec, outputs: object, labels: object, calls: list[int] = []) -> object:  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, unlimited[1]))
        return score(task, outputs, labels)

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "score", fill_up)
        try:
            with pytest.raises(OSError, match="too large"):
                fit_in(tmp_path, store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert torch.load(tmp_path / loop.LAST, weights_only=True)["epoch"] == 1

    network, _ = fit_in(tmp_path, store, resume=True)

    expected = fitted[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_an_image_without_a_number_ends_a_fit_with_the_name_of_its_data(store: Store, tmp_path: Path) -> None:
    holed = stored_as(store, tmp_path / "data", "float32")
    values = np.load(holed.folder / "images.npy")
    values[7, 0, 3, 3] = np.nan
    np.save(holed.folder / "images.npy", values)

    with pytest.raises(ValueError, match=f"{holed.folder}, train images .* not finite"):
        fit_in(tmp_path / "fit", holed)


def test_a_teacher_pulls_the_network_towards_its_answers(store: Store, tmp_path: Path) -> None:
    certain = new_network(make_job(store, seed=3)).to(memory_format=torch.contiguous_format)
    certain.backbone.get_classifier().bias.data[:] = torch.tensor([0.0, 0.0, 6.0])
    card = dataclasses.replace(CARD, task=CLASSES.name, architecture=SMALL.name)
    teacher = write_checkpoint(certain, tmp_path, card)

    alone, _ = fit_in(None, store)
    taught, card = fit_in(None, store, teacher=teacher)

    images = scale_to_unit(store.counts(store.indices("test")))
    assert (taught(images).softmax(1)[:, 2] > alone(images).softmax(1)[:, 2]).all()
    assert card.teacher == read_card(teacher).sha256


def test_a_teacher_of_another_task_is_refused(store: Store, tmp_path: Path) -> None:
    network = find_architecture("mobilenetv3_small").build(find_task("halo_mass"))
    teacher = write_checkpoint(network, tmp_path, dataclasses.replace(CARD, task="halo_mass"))

    with pytest.raises(ValueError, match="is of task 'halo_mass', not 'substructure'"):
        fit_in(None, store, teacher=teacher)


def test_a_streamed_fit_says_so_and_sees_other_images(
    store: Store, tmp_path: Path, fitted: tuple[LensNetwork, Card, Path]
) -> None:
    _, card = fit_in(tmp_path, store, stream=True)

    streamed, stored = (read_log(folder)["loss"].dropna().to_numpy() for folder in (tmp_path, fitted[2]))
    assert card.stream
    assert streamed[0] == stored[0]  # the first epoch's
    assert (streamed[1:] != stored[1:]).all()


def test_outputs_without_a_number_end_a_fit(store: Store, tmp_path: Path) -> None:
    reckless = dataclasses.replace(SMALL, full=Schedule(batch_size=12, learning_rate=1e30))

    with pytest.raises(ValueError, match="diverged; lower its learning rate"):
        fit(make_job(store, reckless, preset=WHOLE), threads=1, device="cpu", folder=tmp_path)
