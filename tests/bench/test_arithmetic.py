"""Operations against closed forms: output pixels x output channels x inputs of a kernel, twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.arithmetic import count_flop
from lensing_models.registry import find_architecture, find_task


@pytest.mark.parametrize(
    ("layer", "multiply_adds"),
    [
        (nn.Conv2d(3, 16, 5), 28 * 28 * 16 * 3 * 25),
        (nn.Conv2d(3, 16, 5, stride=2, padding=2), 16 * 16 * 16 * 3 * 25),
        (nn.Conv2d(3, 3, 5, groups=3), 28 * 28 * 3 * 25),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), 3 * 32 * 32 * 10),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 0),
    ],
    ids=["convolution", "strided", "depthwise", "linear", "normalisation"],
)
def test_a_layer_has_the_operations_of_its_closed_form(layer: nn.Module, multiply_adds: int) -> None:
    assert count_flop(layer.eval(), torch.zeros(1, 3, 32, 32)) == 2 * multiply_adds


def basic_block(width: int, before: int, pixels: int) -> int:
    """Return the multiply-adds of a basic block of a ResNet, its shortcut included (He et al. 2016, table 1)."""
    shortcut = before * width if before != width else 0
    return pixels**2 * (9 * before * width + 9 * width * width + shortcut)


def test_resnet18_has_the_operations_of_its_layers() -> None:
    network = find_architecture("resnet18").build(find_task("substructure"))
    # 150 px, halved (rounding up) by the stem, the pooling and the first block of three stages.
    stem = 75**2 * 64 * 49
    stages = [(64, 64, 38), (128, 64, 19), (256, 128, 10), (512, 256, 5)]
    blocks = sum(
        basic_block(width, before, pixels) + basic_block(width, width, pixels) for width, before, pixels in stages
    )

    assert count_flop(network, torch.zeros(1, 1, 150, 150)) == 2 * (stem + blocks + 512 * 3)


def test_operations_grow_with_the_images() -> None:
    layer = nn.Conv2d(1, 4, 3)

    assert count_flop(layer, torch.zeros(6, 1, 9, 9)) == 6 * count_flop(layer, torch.zeros(1, 1, 9, 9))
