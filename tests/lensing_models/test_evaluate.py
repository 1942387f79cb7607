import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lensing_models.checkpoint import write_checkpoint
from lensing_models.data.find import open_task_store, refuse_other_classes
from lensing_models.data.manifest import write_manifest
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.evaluate import bootstrap, bootstrap_difference, main, predict
from lensing_models.network import LensNetwork
from lensing_models.preset import Split
from lensing_models.registry import find_architecture, find_task
from tests.lensing_models.test_checkpoint import CARD

MASS = find_task("halo_mass")
CLASSES = find_task("substructure")


class Brightness(torch.nn.Module):
    """A backbone that puts out the mean of the image: an oracle by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def mass_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data") / "halo_mass"
    return simulate_dataset(MASS, Split(train=2, validation=2, test=12), folder)


@pytest.fixture
def network() -> LensNetwork:
    return LensNetwork(Brightness(), image_size=150, input_size=150, output_count=1)


def test_predictions_follow_the_order_of_the_indices(network: LensNetwork, mass_store: Store) -> None:
    rows = mass_store.indices("test")[::-1]
    counts = mass_store.counts(rows)
    low, high = counts.min(axis=(1, 2, 3)), counts.max(axis=(1, 2, 3))
    expected = (counts.mean(axis=(1, 2, 3), dtype=np.float64) - low) / (high - low)

    outputs = predict(network, mass_store, rows, batch_size=5)

    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs[:, 0], expected, rtol=1e-5)


def test_predicting_restores_the_mode(network: LensNetwork, mass_store: Store) -> None:
    network.train()

    predict(network, mass_store, mass_store.indices("test")[:1])

    assert network.training


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    errors = np.random.default_rng(0).normal(0.01, 0.002, size=400)
    labels = np.full(400, 0.05)

    low, high = bootstrap(MASS, np.log10(labels + errors)[:, None], labels, resamples=4000)["bias"]

    expected = stats.norm.interval(0.95, loc=errors.mean(), scale=errors.std() / np.sqrt(400))
    assert (low, high) == pytest.approx(expected, abs=1e-5)


def test_a_paired_interval_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.01, size=400), rng.normal(0.001, 0.001, size=400)
    labels = np.full(400, 0.05)
    first, second = (np.log10(labels + error)[:, None] for error in (shared + own, shared))

    low, high = bootstrap_difference(MASS, first, second, labels, resamples=4000)["bias"]

    # Ten times narrower than the interval of either: the shared error cancels.
    expected = stats.norm.interval(0.95, loc=own.mean(), scale=own.std() / np.sqrt(400))
    assert (low, high) == pytest.approx(expected, abs=1e-5)


def test_a_network_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(60, 3)), np.arange(60) % 3

    intervals = bootstrap_difference(CLASSES, outputs, outputs, labels, resamples=20)

    assert set(intervals.values()) == {(0.0, 0.0)}


def test_intervals_are_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(50, 3)), rng.integers(3, size=50)

    assert bootstrap(CLASSES, outputs, labels, resamples=20) == bootstrap(CLASSES, outputs, labels, resamples=20)
    assert bootstrap(CLASSES, outputs, labels, resamples=20) != bootstrap(
        CLASSES, outputs, labels, resamples=20, seed=1
    )


def test_a_resample_without_a_class_is_left_out() -> None:
    outputs = np.random.default_rng(0).normal(size=(6, 3))

    low, high = bootstrap(CLASSES, outputs, np.array([0, 0, 1, 1, 2, 2]), resamples=200)["auc"]

    assert 0 <= low < high <= 1


def test_a_metric_that_is_never_defined_has_no_interval() -> None:
    intervals = bootstrap(CLASSES, np.zeros((4, 3)), np.zeros(4, dtype=np.int64), resamples=10)

    assert np.isnan(intervals["auc"]).all()


def test_a_store_is_found_in_a_folder_of_one_for_each_task(mass_store: Store) -> None:
    folder = mass_store.folder

    assert open_task_store(folder, "halo_mass").recipe_digest == mass_store.recipe_digest
    assert open_task_store(folder.parent, "halo_mass").recipe_digest == mass_store.recipe_digest


def test_a_store_of_another_task_is_refused(mass_store: Store) -> None:
    with pytest.raises(ValueError, match="holds 'halo_mass', not 'substructure'"):
        open_task_store(mass_store.folder, "substructure")


def test_no_store_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set for halo_mass, .* python -m lensing_models\.data"):
        open_task_store(tmp_path, "halo_mass")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_checkpoint(find_architecture(CARD.architecture).build(MASS), tmp_path, CARD)


def test_the_command_prints_each_metric_with_its_interval(
    checkpoint: Path, mass_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--data", str(mass_store.folder), "--threads", "2"]) == 0

    printed = capsys.readouterr().out
    assert f"halo_mass/mobilenetv3_small (unconverged), {len(mass_store.indices('test'))} test images" in printed
    assert "another data set than it was fitted on" in printed
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert all(" to " in lines[name] for name in MASS.metrics)


def test_the_command_compares_with_another_checkpoint(
    checkpoint: Path, mass_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(checkpoint), "--data", str(mass_store.folder), "--against", str(checkpoint)])

    assert "on the same images:\nmetric" in capsys.readouterr().out


def test_another_checkpoint_of_another_task_is_refused(checkpoint: Path, mass_store: Store, tmp_path: Path) -> None:
    network = find_architecture(CARD.architecture).build(CLASSES)
    other = write_checkpoint(network, tmp_path / "other", dataclasses.replace(CARD, task="substructure"))

    with pytest.raises(ValueError, match="is of task 'substructure', not 'halo_mass'"):
        main([str(checkpoint), "--data", str(mass_store.folder), "--against", str(other)])


def test_a_split_without_images_is_named(checkpoint: Path, tmp_path: Path) -> None:
    store = simulate_dataset(MASS, Split(train=2, validation=0, test=2), tmp_path / "halo_mass")

    with pytest.raises(ValueError, match="has no validation images"):
        main([str(checkpoint), "--data", str(store.folder), "--split", "validation"])


@pytest.mark.parametrize(
    ("sky", "digest", "archive", "warned"),
    [
        ("fits", "other", "", 2),  # a card that is older than the digest of archives
        ("fits", "other", "this one", 2),
        ("fits", "other", "another one", 0),
        ("fits", "", "this one", 0),
        ("deeplense", "other", "", 0),
    ],
)
def test_an_archive_in_another_split_may_have_been_fitted_to(
    mass_store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sky: str,
    digest: str,
    archive: str,
    warned: int,
) -> None:
    shutil.copytree(mass_store.folder, tmp_path / "data")
    recipe = dataclasses.replace(mass_store.manifest.recipe, sky="fits")
    manifest = dataclasses.replace(mass_store.manifest, recipe=recipe, recipe_digest=recipe.digest, archive="this one")
    write_manifest(tmp_path / "data" / "manifest.json", manifest)
    card = dataclasses.replace(CARD, sky=sky, archive=archive, recipe_digest=digest or recipe.digest)
    checkpoint = write_checkpoint(find_architecture(CARD.architecture).build(MASS), tmp_path, card)

    main([str(checkpoint), "--data", str(tmp_path / "data"), "--against", str(checkpoint)])

    assert capsys.readouterr().out.count("IT MAY HAVE BEEN FITTED TO THESE IMAGES") == warned


def test_labels_of_a_task_that_has_changed_since_are_refused(tmp_path: Path) -> None:
    store = simulate_dataset(CLASSES, Split(train=3, validation=0, test=3), tmp_path / "substructure")

    refuse_other_classes(store, CLASSES.classes)
    refuse_other_classes(store, ("smooth", "clumps", "string"))  # other words for the same labels
    with pytest.raises(ValueError, match="label 1 is 'sphere', but the classes of substructure are no, vort, sphere"):
        refuse_other_classes(store, ("no", "vort", "sphere"))
    with pytest.raises(ValueError, match="label 2 is 'vort', but the classes of substructure are no, sphere"):
        refuse_other_classes(store, ("no", "sphere"))


def test_a_missing_checkpoint_is_one_line_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "lensing_models.evaluate", "nowhere.safetensors", "--data", "."]

    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert answer.returncode == 2
    assert answer.stderr.startswith("error: no checkpoint nowhere.safetensors")
    assert answer.stderr.count("\n") == 1
