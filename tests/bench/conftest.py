from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.records import Case
from lensing_models.network import LensNetwork
from lensing_models.precision import without_tf32
from lensing_models.registry import find_architecture, find_task

#: Backends that compile each network for a minute or so: most of their tests run `TINY`.
COMPILING = ("inductor", "aoti")
#: A network of a few layers of the kinds that the others have.
TINY = "tiny"


def new_network(architecture: str, task: str) -> LensNetwork:
    """Return a network with random weights: *architecture*, which may be `TINY`, for *task*."""
    spec = find_task(task)
    if architecture != TINY:
        return find_architecture(architecture).build(spec)
    channels, side, _ = spec.image_shape
    layers = [
        *(nn.Conv2d(channels, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, spec.output_count)),
    ]
    size = {"image_size": side, "input_size": side // 2, "output_count": spec.output_count}
    return LensNetwork(nn.Sequential(*layers), **size).eval()


@cache
def _weights(architecture: str, task: str) -> dict[str, torch.Tensor]:
    """Return weights whose BatchNorm statistics belong to them, so that outputs are tame."""
    torch.manual_seed(0)
    network = new_network(architecture, task)
    torch.nn.init.normal_(network.output_shift)
    network.train()
    with torch.no_grad():
        network(lens_like_images(4, task))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def lens_like_images(count: int, task: str = "substructure") -> torch.Tensor:
    """Return images (count, C, H, W) float32 in [0, 1] of the shape that *task* has: smooth, noisy rings."""
    channels, side, _ = find_task(task).image_shape
    axis = torch.linspace(-3.75, 3.75, side)
    radius = torch.hypot(axis[None, :], axis[:, None])
    generator = torch.Generator().manual_seed(7)
    size = 0.8 + torch.rand(count, 1, 1, 1, generator=generator)
    rings = torch.exp(-0.5 * ((radius - size) / 0.2) ** 2)
    noise = 0.05 * torch.rand(count, channels, side, side, generator=generator)
    return (rings + noise).clamp(0, 1).contiguous()


class GivenImages:
    """A `lensing_models.network.Calibration` of images in memory."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._images.numpy().tobytes()).hexdigest()

    def images(self) -> torch.Tensor:
        return self._images


@pytest.fixture
def build() -> Callable[[str, str], LensNetwork]:
    """Return a builder of fresh networks that always gives the same weights, and images to quantise them by."""

    def make(architecture: str, task: str) -> LensNetwork:
        network = new_network(architecture, task)
        network.load_state_dict(_weights(architecture, task))
        network.calibration = GivenImages(lens_like_images(16, task))
        return network

    return make


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder of exported files for the whole session, so that each is made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Give torch two threads, as the cases here ask for, and put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_case(**changes: object) -> Case:
    """Return a small case with *changes*."""
    facts: dict[str, object] = {
        "task": "substructure",
        "architecture": "mobilenetv3_small",
        "backend": "eager",
        "precision": "fp32",
        "batch_size": 2,
        "device": "cpu",
        "threads": 2,
    }
    return Case(**{**facts, **changes})  # type: ignore[arg-type]  # a test names its own fields


@pytest.fixture
def forbidden_tf32() -> Iterator[None]:
    """Forbid torch to round to TF32, as a run on CUDA does."""
    with without_tf32("cuda"):
        yield
