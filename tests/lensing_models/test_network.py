"""Facts that hold for every architecture on every task."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from lensing_models.network import LensNetwork, build_network
from lensing_models.registry import find_architecture, find_task, known_architectures
from lensing_models.specs import TaskSpec
from lensing_models.tasks import known_tasks


@pytest.mark.parametrize("task", known_tasks().values(), ids=lambda task: task.name)
@pytest.mark.parametrize("name", known_architectures())
def test_outputs_are_float32_one_row_an_image(name: str, task: TaskSpec) -> None:
    network = find_architecture(name).build(task)

    with torch.inference_mode():
        outputs = network(torch.rand(2, *task.image_shape))

    assert outputs.shape == (2, task.output_count)
    assert outputs.dtype == torch.float32
    assert not network.training


@pytest.mark.parametrize("name", known_architectures())
def test_the_first_convolution_has_as_many_channels_as_the_image(name: str) -> None:
    network = find_architecture(name).build(find_task("substructure"))

    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))

    assert first.in_channels == 1


@pytest.fixture(scope="module")
def colour_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a network for colour images and a thousand classes, as timm publishes them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "colour.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), path)
    return path


def test_a_pretrained_stem_is_folded_exactly_to_one_channel(colour_weights: Path) -> None:
    overlay = {"file": str(colour_weights)}
    colour = timm.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=overlay).eval().double()
    images = torch.rand(2, 1, 150, 150, dtype=torch.float64)

    network = build_network(
        find_architecture("resnet18"), find_task("substructure"), pretrained=True, weights=colour_weights
    )

    with torch.inference_mode():
        features = network.backbone.double().forward_features(images)
        expected = colour.forward_features(images.expand(-1, 3, -1, -1))
    # The weights are float32: their sum over the channels is rounded once.
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert features.abs().max() > 0.1


def test_pretrained_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no pretrained weights of resnet18 from .*nowhere"):
        build_network(
            find_architecture("resnet18"), find_task("substructure"), pretrained=True, weights=tmp_path / "nowhere"
        )


def prefixed(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return its tensors as a network around it names them: those of our checkpoints."""
    return {f"backbone.{name}": value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("made", "names", "message"),
    [
        ("resnet34", torch.nn.Module.state_dict, "it has also layer1.2"),
        ("resnet10t", torch.nn.Module.state_dict, "size mismatch"),
        ("resnet18", prefixed, "it has also backbone.bn1.bias"),
    ],
)
def test_pretrained_weights_of_another_network_or_format_are_refused(
    tmp_path: Path, made: str, names: Callable[[torch.nn.Module], dict[str, torch.Tensor]], message: str
) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(names(timm.create_model(made)), path)

    with pytest.raises(OSError, match=rf"no pretrained weights of resnet18 from .*(?s:.*){message}"):
        build_network(find_architecture("resnet18"), find_task("substructure"), pretrained=True, weights=path)


@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pth"])
def test_damaged_pretrained_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a file of weights")

    with pytest.raises(OSError, match=f"no pretrained weights of resnet18 from .*{name}"):
        build_network(
            find_architecture("resnet18"), find_task("substructure"), pretrained=True, weights=tmp_path / name
        )


class Spy(torch.nn.Module):
    """A backbone that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = torch.empty(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.weight * images.mean(dim=(1, 2, 3))[:, None]


def test_images_are_resized_bilinearly_inside_the_network() -> None:
    spy = Spy()
    network = LensNetwork(spy, image_size=4, input_size=8, output_count=1)
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)

    network(ramp)

    # Half-pixel centres: output pixel i samples (i + 0.5) / 2 - 0.5, clamped to the edge.
    expected = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(spy.seen[0, 0, 3], expected)


def test_images_of_the_right_size_are_not_touched() -> None:
    spy = Spy()
    images = torch.rand(1, 1, 4, 4)

    LensNetwork(spy, image_size=4, input_size=4, output_count=1)(images)

    assert torch.equal(spy.seen, images)


def test_outputs_are_scaled_and_shifted() -> None:
    network = LensNetwork(Spy(), image_size=4, input_size=4, output_count=1)
    network.output_scale.fill_(0.5)
    network.output_shift.fill_(-1.0)

    outputs = network(torch.full((1, 1, 4, 4), 3.0))

    assert outputs.item() == 0.5 * 3.0 - 1.0


def test_reduced_precision_stays_inside_the_backbone() -> None:
    spy = Spy()
    network = LensNetwork(spy, image_size=4, input_size=4, output_count=1).set_compute_dtype(torch.bfloat16)

    outputs = network(torch.rand(2, 1, 4, 4))

    assert spy.seen.dtype == torch.bfloat16
    assert outputs.dtype == torch.float32
    assert network.output_scale.dtype == torch.float32
