from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bench.equalize import channel_groups, equalize, equalize_by, scale_factors, tensors_of
from bench.export import onnx_file
from bench.onnx_run import run_graph
from bench.qdq_graph import Quantizer
from bench.quantize import ONNX_RUNTIME, OPENVINO, TENSORRT
from bench.sensitivity import output_error
from lensing_models.network import LensNetwork

Build = Callable[[str, str], LensNetwork]
RANDOM = np.random.default_rng(0)
#: Some bright, some faint, so that the answers differ.
IMAGES = RANDOM.random((12, 1, 12, 12), np.float32) * RANDOM.random((12, 1, 1, 1), np.float32)


class Uneven(nn.Module):
    """Two convolutions in a residual stream, some of whose channels are a hundred times the others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 3)
        large = torch.tensor([100.0, 1.0] * 4)
        with torch.no_grad():
            for maker in (self.stem, self.inner, self.outer):
                maker.weight *= large[:, None, None, None]
                assert maker.bias is not None
                maker.bias *= large
            for taker in (self.inner, self.outer):
                taker.weight /= large[None, :, None, None]
            self.classifier.weight /= large

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(images))
        stream = torch.relu(stem + self.outer(torch.relu(self.inner(stem))))
        out: torch.Tensor = self.classifier(stream.mean((2, 3)))
        return out


@pytest.fixture
def uneven(workdir: Path) -> Any:
    torch.manual_seed(0)
    network = LensNetwork(Uneven(), image_size=12, input_size=12, output_count=3).eval()
    network.output_scale.fill_(0.3)  # as masses have
    network.output_shift.fill_(-2.0)
    return onnx_file(network, workdir)


def test_the_same_is_computed_with_channels_that_are_more_alike(uneven: Path) -> None:
    before = onnx.load(str(uneven))

    after = equalize_by(IMAGES, before)

    np.testing.assert_allclose(run_graph(after, IMAGES), run_graph(before, IMAGES), rtol=1e-4, atol=1e-5)
    stem = tensors_of(before)[0]
    peaks = [np.abs(run_graph(model, IMAGES, stem)).max(axis=(0, 2, 3)) for model in (before, after)]
    assert peaks[0].max() / peaks[0].min() > 50
    assert peaks[1].max() / peaks[1].min() < 20


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenetv3_small", "efficientnet_b5-px150"])
def test_networks_compute_the_same(architecture: str, build: Build, workdir: Path) -> None:
    torch.manual_seed(0)
    network = build(architecture, "substructure")
    before = onnx.load(str(onnx_file(network, workdir)))
    images = np.random.default_rng(1).random((3, 1, 150, 150), np.float32)

    after = equalize_by(images, before)

    exact = run_graph(before, images)
    assert np.abs(run_graph(after, images) - exact).max() <= 1e-4 * np.abs(exact).max()
    pairs = zip(before.graph.initializer, after.graph.initializer, strict=True)
    assert any(one.raw_data != other.raw_data for one, other in pairs)


def test_a_residual_stream_is_one_group_and_each_inner_tensor_another(build: Build, workdir: Path) -> None:
    groups = channel_groups(onnx.load(str(onnx_file(build("resnet18", "substructure"), workdir))))

    made = sorted(tuple(sorted(node.input[1].removeprefix("backbone.") for node in group.makers)) for group in groups)

    assert len(groups) == 4 + 8
    assert ("conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight") in made
    assert ("layer1.0.conv1.weight",) in made
    taken = {node.input[1] for group in groups for node in group.takers}
    # Behind the mean over the image, too.
    assert "backbone.fc.weight" in taken
    assert "backbone.conv1.weight" not in taken


def test_what_an_operation_that_is_not_homogeneous_takes_is_left_alone(build: Build, workdir: Path) -> None:
    model = onnx.load(str(onnx_file(build("mobilenetv3_small", "substructure"), workdir)))
    curved = {name for node in model.graph.node if node.op_type in ("HardSwish", "HardSigmoid") for name in node.input}

    makers = {node.output[0] for group in channel_groups(model) for node in group.makers}

    assert makers
    assert not makers & curved


@pytest.mark.parametrize("scheme", [ONNX_RUNTIME, OPENVINO, TENSORRT], ids=lambda scheme: scheme.name)
def test_small_channels_survive_8_bits(uneven: Path, scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = run_graph(onnx.load(str(uneven)), IMAGES)
    error = output_error(run_graph(Quantizer(uneven, scheme, IMAGES).quantize(), IMAGES), exact)
    monkeypatch.setattr("bench.qdq_graph.equalize_by", lambda images, model: model)
    before = output_error(run_graph(Quantizer(uneven, scheme, IMAGES).quantize(), IMAGES), exact)

    assert error < before / 3


@pytest.mark.parametrize("scheme", [ONNX_RUNTIME, OPENVINO, TENSORRT], ids=lambda scheme: scheme.name)
def test_the_file_gives_the_mean_answers_of_the_float_graph(uneven: Path, scheme: Any, tmp_path: Path) -> None:
    made = Quantizer(uneven, scheme, IMAGES)
    exact = run_graph(made.model, IMAGES).mean(axis=0)
    plain = run_graph(made.quantize(), IMAGES).mean(axis=0)

    made.save(tmp_path / "file.onnx")

    shifted = run_graph(onnx.load(str(tmp_path / "file.onnx")), IMAGES).mean(axis=0)
    assert np.abs(shifted - exact).max() < 0.05 * np.abs(plain - exact).max()


def test_channels_without_activations_keep_their_weights() -> None:
    factors = scale_factors(np.array([4.0, 1.0, 0.0, 1e-9], np.float32), power=0.5)

    np.testing.assert_allclose(factors, [1.0, 0.5, 1.0, 0.125])
    np.testing.assert_array_equal(scale_factors(np.zeros(3, np.float32)), np.ones(3))


def test_weights_that_two_layers_share_are_left_alone(uneven: Path) -> None:
    model = onnx.load(str(uneven))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[2].input[1] = convolutions[1].input[1]

    peaks = {name: np.array([100.0, 1.0] * 4, np.float32) for name in tensors_of(model)}

    np.testing.assert_allclose(
        run_graph(equalize(model, peaks), IMAGES), run_graph(model, IMAGES), rtol=1e-4, atol=1e-5
    )
