"""The network every runtime gets: resize, backbone and output scale in one graph."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from lensing_models.specs import ArchitectureSpec, TaskSpec


class Calibration(Protocol):
    """Images by which the ranges of a quantised network are set: of the training split, never of what is scored."""

    @property
    def digest(self) -> str:
        """Return the identity of the images; none is read for it."""

    def images(self) -> torch.Tensor:
        """Return the images (N, C, H, W) float32 in [0, 1], on the CPU; ValueError if there are none."""


class LensNetwork(nn.Module):
    """A timm backbone between a resize and an affine output, both part of the exported graph.

    Reduced precision is a property of the backbone alone: images come in and outputs leave as
    float32, so that every runtime and precision has the same door.

    Args:
        backbone: Maps (B, C, S, S) to (B, K).
        image_size: Side of the images that come in [px].
        input_size: Side S that the backbone gets [px].
        output_count: K.

    Attributes:
        calibration: Images of its training data; None where nobody named any, and it cannot be quantised.
    """

    output_scale: torch.Tensor
    output_shift: torch.Tensor
    calibration: Calibration | None = None

    def __init__(self, backbone: nn.Module, *, image_size: int, input_size: int, output_count: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size = image_size
        self.input_size = input_size
        # Mean and spread of a regression's labels; the identity for logits.
        self.register_buffer("output_scale", torch.ones(output_count))
        self.register_buffer("output_shift", torch.zeros(output_count))
        self.compute_dtype = torch.float32

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return outputs (B, K) float32 for images (B, C, H, W) float32 in [0, 1]."""
        if self.input_size != self.image_size:
            size = (self.input_size, self.input_size)
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=False)
        outputs: torch.Tensor = self.backbone(images.to(self.compute_dtype))
        return outputs.float() * self.output_scale + self.output_shift

    def set_compute_dtype(self, dtype: torch.dtype) -> LensNetwork:
        """Cast the backbone to *dtype* in place and return the network."""
        self.backbone.to(dtype)
        self.compute_dtype = dtype
        return self


def build_network(
    architecture: ArchitectureSpec, task: TaskSpec, *, pretrained: bool = False, weights: Path | None = None
) -> LensNetwork:
    """Return *architecture* for *task*, in evaluation mode.

    Args:
        architecture: The backbone and its input size.
        task: Gives channels and outputs.
        pretrained: Start from timm's weights for colour images instead of random ones. A stem of
            three channels is folded to one by summing them: the network then answers to an image
            as the original to the same image in all three.
        weights: File of such weights, where the network has no internet.

    Raises:
        ValueError: If the images are not square.
        OSError: If the weights cannot be had.
    """
    import timm
    from safetensors import SafetensorError

    channels, height, width = task.image_shape
    if height != width:
        raise ValueError(f"task {task.name!r}: images must be square, not {height} x {width}")
    try:
        backbone = timm.create_model(
            architecture.timm_name,
            pretrained=pretrained,
            pretrained_cfg_overlay={"file": str(weights)} if weights else None,
            in_chans=channels,
            num_classes=task.output_count,
        )
        if weights:
            _expect_names(backbone, weights)
    # No internet, or a file of something else.
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        if not pretrained:
            raise
        where = weights or "timm's hub"
        raise OSError(f"no pretrained weights of {architecture.timm_name} from {where}: {error}") from error
    network = LensNetwork(
        backbone, image_size=height, input_size=architecture.input_size, output_count=task.output_count
    )
    return network.eval()


def _expect_names(backbone: nn.Module, weights: Path) -> None:
    """Raise ValueError unless the file has a tensor for all of *backbone* but its classifier, and no others.

    timm, for another number of classes than the file's, takes what fits and leaves the rest random.
    """
    from timm.models import load_state_dict

    classifier = str(backbone.pretrained_cfg["classifier"])  # type: ignore[index]  # timm's own attribute
    given, own = (
        {name for name in names if not name.startswith(f"{classifier}.") and not name.endswith("num_batches_tracked")}
        for names in (load_state_dict(str(weights)), backbone.state_dict())
    )
    if differing := sorted(given ^ own):
        lacks = "it lacks" if differing[0] in own else "it has also"
        raise ValueError(f"another network or format: {lacks} {differing[0]} ({len(differing)} names differ)")
