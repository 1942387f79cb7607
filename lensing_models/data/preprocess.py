"""From counts to what a network sees: the one scaling, on the host, for every runtime alike."""

from __future__ import annotations

import numpy as np
import torch

from lensing_models.specs import FloatArray


def scale_to_unit(counts: FloatArray) -> torch.Tensor:
    """Return each image stretched so that its smallest value is 0 and its largest 1.

    Args:
        counts: (B, C, H, W), any unit; the channels of an image share one scale.

    Returns:
        (B, C, H, W) float32, contiguous, on the CPU, sharing no memory with *counts*; an image
        of one value throughout becomes zeros.

    Raises:
        ValueError: If *counts* has another number of dimensions, or an image is not finite.
    """
    if counts.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), not of shape {counts.shape}")
    values = np.array(counts, dtype=np.float32, order="C")
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(f"image {int(np.argmin(finite))} of {len(values)} has a value that is not finite")
    return stretch(torch.from_numpy(values))


def stretch(counts: torch.Tensor) -> torch.Tensor:
    """Return finite *counts* (B, C, H, W) float32 as `scale_to_unit` does, in place, where they lie."""
    if counts.numel():
        counts -= counts.amin(dim=(1, 2, 3), keepdim=True)
        largest = counts.amax(dim=(1, 2, 3), keepdim=True)
        counts /= torch.where(largest > 0, largest, 1)
    return counts
