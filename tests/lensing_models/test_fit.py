import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from lensing_models import fit as fitting
from lensing_models.architectures import ARCHITECTURES
from lensing_models.batches import Order, TrainingBatches
from lensing_models.checkpoint import Card, load_checkpoint, verify_checkpoint, write_checkpoint
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.data.supply import StoredImages
from lensing_models.evaluate import predict
from lensing_models.fit import chosen_precision, fit
from lensing_models.fit_module import FitModule, Means, learning_rate_share
from lensing_models.job import Job
from lensing_models.loop import average_decay
from lensing_models.metrics import score
from lensing_models.network import LensNetwork
from lensing_models.preset import PRESETS, Split
from lensing_models.registry import find_architecture, find_task
from lensing_models.specs import ArchitectureSpec, Schedule

CLASSES, MASS = find_task("substructure"), find_task("halo_mass")
SIZES = Split(train=36, validation=6, test=9)
CAPPED = dataclasses.replace(PRESETS["quick"], name="tiny", epochs={"default": 3})
WHOLE = dataclasses.replace(CAPPED, step_capped=False)
SMALL = dataclasses.replace(
    find_architecture("mobilenetv3_small"),
    quick=Schedule(batch_size=12, learning_rate=3e-3, most_steps=4),
    full=Schedule(batch_size=12, learning_rate=3e-3),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return simulate_dataset(CLASSES, SIZES, tmp_path_factory.mktemp("data") / "substructure")


@pytest.fixture(scope="module")
def mass_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return simulate_dataset(MASS, SIZES, tmp_path_factory.mktemp("data") / "halo_mass")


def make_job(store: Store, architecture: ArchitectureSpec = SMALL, **changes: object) -> Job:
    facts = {"task": find_task(store.task), "architecture": architecture, "preset": CAPPED, "seed": 0, **changes}
    return Job(store=store, **facts)


@pytest.fixture(scope="module")
def fitted(store: Store) -> tuple[LensNetwork, Card]:
    return fit(make_job(store), threads=1, device="cpu")


def test_a_step_cap_ends_the_fit_and_leaves_it_unconverged(fitted: tuple[LensNetwork, Card]) -> None:
    _, card = fitted

    assert (card.steps, card.converged) == (4, False)
    assert card.epochs == pytest.approx(4 / 3)


def test_the_card_names_the_input_size_and_the_archive(store: Store) -> None:
    imported = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, archive="of these images"))

    network, card = fit(make_job(imported), threads=1, device="cpu")

    assert (card.input_size, card.archive) == (SMALL.input_size, "of these images")
    how = dict(card.fitted_with)
    assert how.pop("wall_s") > 0  # type: ignore[operator]  # a number
    assert how == {
        "batch_size": SMALL.quick.batch_size,
        "learning_rate": SMALL.quick.learning_rate,
        "weight_decay": 0.05,
        "device": "cpu",
        "precision": chosen_precision(network, "cpu"),
        "threads": 1,
    }


def test_a_fit_that_runs_to_its_end_is_converged(mass_store: Store) -> None:
    _, card = fit(make_job(mass_store, preset=WHOLE), threads=1, device="cpu")

    assert (card.steps, card.epochs, card.converged) == (9, 3, True)
    assert card.scored_images == {"validation": 6, "test": 9}


def test_the_network_comes_back_in_evaluation_mode_rounded_to_fp16(fitted: tuple[LensNetwork, Card]) -> None:
    network, _ = fitted

    assert not network.training
    wide = [value for value in network.parameters() if value.ndim >= 2]
    assert all(torch.equal(value, value.half().float()) and value.is_contiguous() for value in wide)


def test_the_card_says_what_the_rounded_weights_score(fitted: tuple[LensNetwork, Card], store: Store) -> None:
    network, card = fitted

    values = score(CLASSES, predict(network, store, store.indices("test")), store.labels("test"))

    assert card.test == pytest.approx(values, abs=1e-4)
    assert card.scored_images == {"validation": 6, "test": 9}


def test_the_card_names_its_data(fitted: tuple[LensNetwork, Card], store: Store) -> None:
    _, card = fitted

    assert (card.recipe_digest, card.sky, card.preset, card.seed) == (store.recipe_digest, store.sky, "tiny", 0)
    assert card.versions["torch"] == torch.__version__.split("+")[0]


def test_the_same_seed_gives_the_same_weights(fitted: tuple[LensNetwork, Card], store: Store) -> None:
    again, _ = fit(make_job(store), threads=1, device="cpu")

    first = fitted[0].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in again.state_dict().items())


def test_a_fit_leaves_the_global_random_state_alone(store: Store) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    fitting.new_network(make_job(store))

    assert torch.equal(torch.rand(3), expected)


def test_data_of_another_task_are_refused(mass_store: Store) -> None:
    with pytest.raises(ValueError, match="holds 'halo_mass', not 'substructure'"):
        make_job(mass_store, task=CLASSES)


def test_a_fit_that_diverges_is_named(store: Store) -> None:
    wild = dataclasses.replace(SMALL, quick=Schedule(batch_size=12, learning_rate=1e30))

    with pytest.raises(ValueError, match=r"mobilenetv3_small diverged; lower its learning rate, now 1e\+30"):
        fit(make_job(store, wild), threads=1, device="cpu")


def test_the_output_scale_is_mean_and_spread_of_the_labels_in_log10(mass_store: Store) -> None:
    log10 = np.log10(mass_store.labels("train"))

    network = fitting.new_network(make_job(mass_store))

    assert network.output_shift.item() == pytest.approx(log10.mean(), rel=1e-5)
    assert network.output_scale.item() == pytest.approx(log10.std(), rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.label)
def test_every_network_starts_from_the_mean_of_the_labels(architecture: ArchitectureSpec, mass_store: Store) -> None:
    network = fitting.new_network(make_job(mass_store, architecture)).eval()

    with torch.inference_mode():
        outputs = network(torch.rand(1, 1, 150, 150))

    assert outputs.item() == pytest.approx(np.log10(mass_store.labels("train")).mean(), rel=1e-5)


def test_every_residual_block_starts_as_the_identity(store: Store) -> None:
    network = fitting.new_network(make_job(store))
    passed: list[bool] = []
    for block in network.modules():
        if getattr(block, "has_skip", False):
            block.register_forward_hook(lambda block, inputs, outputs: passed.append(torch.equal(inputs[0], outputs)))

    network(torch.rand(2, 1, 150, 150))

    # MobileNetV3-small has six blocks that keep size and width (Howard et al. 2019, table 2).
    assert passed == [True] * 6


def test_a_fit_from_pretrained_weights_keeps_them_and_says_so(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "colour.safetensors"
    published = timm.create_model("mobilenetv3_small_100").state_dict()
    safetensors.torch.save_file(published, path)

    job = make_job(store, pretrained=True, weights=path)
    network = fitting.new_network(job)
    _, card = fit(job, threads=1, device="cpu")

    stem = network.backbone.conv_stem.weight
    torch.testing.assert_close(stem, published["conv_stem.weight"].sum(1, keepdim=True), rtol=1e-6, atol=1e-7)
    assert card.pretrained


@pytest.fixture(scope="module")
def classifier(fitted: tuple[LensNetwork, Card], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(fitted[0], tmp_path_factory.mktemp("start"), fitted[1])


def test_a_fit_starts_from_another_task_but_for_the_head(
    classifier: Path, fitted: tuple[LensNetwork, Card], mass_store: Store
) -> None:
    job = make_job(mass_store, start=classifier)

    network = fitting.new_network(job).backbone
    _, card = fit(job, threads=1, device="cpu")

    given = fitted[0].backbone.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if name.startswith("classifier.") else given[name])
    assert card.start == verify_checkpoint(classifier).sha256


def test_a_start_from_another_kind_of_network_is_refused(classifier: Path, mass_store: Store) -> None:
    job = make_job(mass_store, find_architecture("resnet18"), start=classifier)

    with pytest.raises(ValueError, match="is no start for this network"):
        fitting.new_network(job)


def test_the_card_names_the_start_that_was_read(
    classifier: Path, mass_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / classifier.name
    for suffix in (".safetensors", ".json"):
        start.with_suffix(suffix).write_bytes(classifier.with_suffix(suffix).read_bytes())
    whole_loop = fitting.run_loop

    def loop_that_loses_the_file(*args: object, **more: object) -> int:
        start.unlink()
        return whole_loop(*args, **more)

    monkeypatch.setattr(fitting, "run_loop", loop_that_loses_the_file)
    _, card = fit(make_job(mass_store, start=start), threads=1, device="cpu")

    assert card.start == verify_checkpoint(classifier).sha256


def test_what_averages_a_fit_copies_neither_its_images_nor_its_teacher(store: Store, classifier: Path) -> None:
    job, teacher = make_job(store), load_checkpoint(classifier)[0]
    module = FitModule(job, fitting.new_network(job), Means(resident=True), teacher)
    images = module._batches._supply._images

    copied = copy.deepcopy(module)

    assert copied._batches._supply._images is images
    assert copied._teacher.network is teacher
    assert copied.network is not module.network


def test_one_start_is_enough(classifier: Path, mass_store: Store) -> None:
    with pytest.raises(ValueError, match="not from both"):
        make_job(mass_store, start=classifier, pretrained=True)


def test_batch_norm_is_refreshed_to_the_mean_statistics_of_turned_batches(store: Store) -> None:
    job = make_job(store)
    network = fitting.new_network(job)
    batches = TrainingBatches(job.task, StoredImages(store, "train"))
    with torch.no_grad():
        stems = [network.backbone.conv_stem(batches[chosen][0]) for chosen in Order(job)]

    FitModule(job, network, Means(), None).refresh_batch_norm()

    means, variances = (torch.stack([getattr(stem, name)(dim=(0, 2, 3)) for stem in stems]) for name in ("mean", "var"))
    torch.testing.assert_close(network.backbone.bn1.running_mean, means.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.backbone.bn1.running_var, variances.mean(0), rtol=1e-4, atol=1e-6)
    assert network.training


def test_frozen_batch_norm_keeps_its_statistics(store: Store) -> None:
    job = make_job(store)
    network = fitting.new_network(job).eval()
    before = network.backbone.bn1.running_mean.clone()

    FitModule(job, network, Means(), None).refresh_batch_norm()

    assert torch.equal(network.backbone.bn1.running_mean, before)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    shares = [learning_rate_share(step, 100) for step in range(101)]

    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("averaged", "expected"), [(1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_the_decay_of_the_average_ramps_up(averaged: int, expected: float) -> None:
    assert average_decay(averaged) == pytest.approx(expected)


def test_the_weight_average_of_a_short_fit_forgets_the_first_weights() -> None:
    kept = np.prod([average_decay(step) for step in range(1, 100)])

    assert kept < 1e-6


def test_depthwise_networks_are_fitted_in_fp32_on_a_cpu() -> None:
    assert chosen_precision(find_architecture("mobilenetv3_small").build(CLASSES), "cpu") == "32-true"


def test_dense_networks_are_fitted_in_bf16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = find_architecture("resnet18").build(CLASSES)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert chosen_precision(network, "cpu") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert chosen_precision(network, "cpu") == "32-true"
