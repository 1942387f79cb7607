"""Facts that hold for every architecture on every task."""

import pytest
import torch

from lensing_models.network import LensNetwork
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
