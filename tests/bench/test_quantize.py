from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.export import was_cached
from bench.job import TrainingImages
from bench.quantize import (
    HELD_OUT,
    INTEGER_ABILITIES,
    ONNX_RUNTIME,
    OPENVINO,
    TENSORRT,
    calibration_images,
    quantized_file,
    variants_of,
)
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.data.simulate import simulate_dataset
from lensing_models.network import LensNetwork
from lensing_models.preset import Split
from lensing_models.registry import find_task
from tests.bench.conftest import GivenImages, lens_like_images, make_case
from tests.bench.test_qdq_graph import small_network

CASE = make_case(backend="onnx", precision="int8")


def network(images: int = 8, seed: int = 0) -> LensNetwork:
    made = small_network()
    made.calibration = GivenImages(torch.rand(images, 1, 12, 12, generator=torch.Generator().manual_seed(seed)))
    return made


def test_a_file_is_made_once(workdir: Path) -> None:
    first = quantized_file(network(seed=2), workdir, ONNX_RUNTIME, CASE).path
    assert not was_cached(first)

    assert quantized_file(network(seed=2), workdir, ONNX_RUNTIME, CASE).path == first
    assert was_cached(first)


def test_a_damaged_file_is_made_again(workdir: Path) -> None:
    path = quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])

    quantized_file(network(), workdir, ONNX_RUNTIME, CASE)

    assert path.read_bytes() == whole


def other_weights(made: LensNetwork) -> None:
    with torch.no_grad():
        made.output_shift.add_(1)


def other_data(made: LensNetwork) -> None:
    made.calibration = GivenImages(torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1)))


def fewer_data(made: LensNetwork) -> None:
    assert made.calibration is not None
    made.calibration = GivenImages(made.calibration.images()[:6])


@pytest.mark.parametrize("change", [other_weights, other_data, fewer_data])
def test_another_network_or_other_images_give_another_file(
    change: Callable[[LensNetwork], None], workdir: Path
) -> None:
    first = quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path
    changed = network()
    change(changed)

    assert quantized_file(changed, workdir, ONNX_RUNTIME, CASE).path != first


def test_each_scheme_and_the_mixed_variant_have_a_file_of_their_own(workdir: Path) -> None:
    paths = {quantized_file(network(), workdir, scheme, CASE).path for scheme in (ONNX_RUNTIME, OPENVINO, TENSORRT)}
    spoilt = network()
    with torch.no_grad():
        spoilt.backbone.point.weight[0] *= 1000  # type: ignore[union-attr,operator,index]  # a Conv2d
        spoilt.backbone.classifier.weight[:, 0] /= 1000  # type: ignore[union-attr,operator,index]  # a Linear
    paths.add(quantized_file(spoilt, workdir, ONNX_RUNTIME, CASE).path)
    mixed = quantized_file(spoilt, workdir, ONNX_RUNTIME, replace(CASE, variant="mixed"))

    assert len(paths | {mixed.path}) == 5
    assert str(mixed.facts["kept_fp32"]).split(" of ")[1].startswith("5 layers: ")
    assert (workdir / str(mixed.facts["sweep_file"])).exists()


@pytest.mark.parametrize("library", ["onnxruntime-gpu", "onnx"])
def test_another_version_of_a_library_gives_another_file(
    library: str, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    first = quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == library else known(name))

    assert quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path != first


def test_a_network_without_images_cannot_be_quantised(workdir: Path) -> None:
    with pytest.raises(RuntimeError, match="calibrated by images of the training split"):
        quantized_file(small_network(), workdir, ONNX_RUNTIME, CASE)


@pytest.mark.parametrize("images", [1, 4])
def test_few_images_are_too_few_to_calibrate_and_to_judge(images: int, workdir: Path) -> None:
    with pytest.raises(ValueError, match=f"5 training images or more to be calibrated, not {images}"):
        quantized_file(network(images=images), workdir, ONNX_RUNTIME, CASE)
    assert [len(part) for part in calibration_images(network(images=5))] == [3, 2]


def test_images_that_judge_set_no_range() -> None:
    calibrating, judging = calibration_images(network(images=8))

    assert (len(calibrating), len(judging)) == (5, 3)
    assert not {image.tobytes() for image in calibrating} & {image.tobytes() for image in judging}


@pytest.mark.parametrize(
    ("changes", "variants"),
    [
        ({}, ("default", "mixed")),
        ({"architecture": "efficientnet_b5", "variant": "px150"}, ("default", "mixed")),
        ({"architecture": "resnet18"}, ("default", "mixed")),
        ({"precision": "fp32"}, ("default",)),
    ],
)
def test_int8_alone_has_a_mixed_variant(changes: dict[str, str], variants: tuple[str, ...]) -> None:
    assert variants_of(replace(CASE, **changes)) == variants  # type: ignore[arg-type]  # texts all


def test_calibration_images_are_of_the_training_split_alone(tmp_path: Path) -> None:
    store = simulate_dataset(find_task("substructure"), Split(train=9, validation=3, test=3), tmp_path / "data")
    training = {image.tobytes() for image in scale_to_unit(store.counts(store.indices("train"))).numpy()}

    some, all_of_them = TrainingImages(store.folder, count=4), TrainingImages(store.folder, count=64)

    assert {image.tobytes() for image in all_of_them.images().numpy()} == training
    assert len({image.tobytes() for image in some.images().numpy()} & training) == 4
    assert some.digest != all_of_them.digest


@pytest.mark.parametrize("task", ["substructure", "halo_mass"])
def test_calibration_images_are_of_all_labels_however_the_store_is_ordered(task: str, tmp_path: Path) -> None:
    # The class of a simulated lens is its number modulo 3, and every sixth image would be of one.
    store = simulate_dataset(find_task(task), Split(train=144, validation=3, test=3), tmp_path / "data")
    labels = dict(zip(store.indices("train").tolist(), store.labels("train"), strict=True))
    images = TrainingImages(store.folder, count=24)
    held_out = images.rows[np.arange(24) % HELD_OUT == 1]

    for rows, fewest in ((images.rows, 8), (held_out, 1), (images.rows[:12], 2)):
        found = [labels[row] for row in rows.tolist()]
        thirds = np.quantile(store.labels("train"), (0, 1 / 3, 2 / 3, 1))
        counts = np.bincount(np.int64(found)) if task == "substructure" else np.histogram(found, thirds)[0]
        assert len(counts) == 3
        assert min(counts) >= fewest - (task == "halo_mass")


def test_calibration_images_are_the_same_each_time(tmp_path: Path) -> None:
    store = simulate_dataset(find_task("substructure"), Split(train=12, validation=3, test=3), tmp_path / "data")

    assert TrainingImages(store.folder, 6).rows.tolist() == TrainingImages(store.folder, 6).rows.tolist()


def test_what_is_asked_of_a_processor_is_known_to_torch() -> None:
    known = torch.cpu.get_capabilities()
    if known["architecture"] != "x86_64":
        pytest.skip("of x86 alone")

    assert {name for name in INTEGER_ABILITIES if name not in known} <= {"dot", "i8mm"}  # of Arm


def test_a_processor_that_multiplies_integers_otherwise_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    first = quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path
    known = torch.cpu.get_capabilities()
    other = {**known, "avx512_vnni": not known.get("avx512_vnni")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)

    assert quantized_file(network(), workdir, ONNX_RUNTIME, CASE).path != first


def test_the_digest_of_calibration_images_follows_the_data(tmp_path: Path) -> None:
    sizes = Split(train=6, validation=3, test=3)
    stores = [simulate_dataset(find_task("substructure"), sizes, tmp_path / str(seed), seed=seed) for seed in (1, 2)]

    assert len({TrainingImages(store.folder).digest for store in stores}) == 2


def test_lens_like_images_are_told_apart_by_their_digest() -> None:
    assert GivenImages(lens_like_images(2)).digest != GivenImages(lens_like_images(3)).digest
    assert np.isfinite(lens_like_images(2).numpy()).all()
