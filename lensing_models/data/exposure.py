"""From a noiseless image to the counts of an exposure, under one of three kinds of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lensing_models.data.law import Law, draw_value

MOST_COUNTS = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """The true settings of one exposure.

    Attributes:
        exposure: Exposure time [s].
        sky_level: Brightness of the sky [counts/s/px].
        background_rms: Rms of a Gaussian background [counts/s/px].
        shot_twice: Whether a Gaussian of the shot noise's variance is added before the Poisson draw.
    """

    exposure: float
    sky_level: float = 0.0
    background_rms: float = 0.0
    shot_twice: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TwofoldNoise:
    """DeepLenseSim's: Gaussian shot noise and background, then a Poisson draw of the sum."""

    log10_exposure: Law
    background_rms: Law

    def settle(self, peak: float, rng: np.random.Generator) -> Exposure:
        """Return an exposure, whatever the image's *peak*."""
        exposure = 10 ** draw_value(self.log10_exposure, rng)
        return Exposure(exposure=exposure, background_rms=draw_value(self.background_rms, rng), shot_twice=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkyNoise:
    """Poisson noise of the image and of a sky over it, which stays in the counts."""

    exposure: Law
    sky_level: Law

    def settle(self, peak: float, rng: np.random.Generator) -> Exposure:
        """Return an exposure, whatever the image's *peak*."""
        return Exposure(exposure=draw_value(self.exposure, rng), sky_level=draw_value(self.sky_level, rng))


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeNoise:
    """Poisson noise of image and sky, told as an image shows it: relative to its peak.

    Attributes:
        corner_rms: Rms where only sky is seen, over the peak.
        pedestal: Level of that sky, over the peak.
    """

    corner_rms: Law
    pedestal: Law

    def settle(self, peak: float, rng: np.random.Generator) -> Exposure:
        """Return the exposure that shows an image of this *peak* [counts/s/px] so.

        With N counts at the peak the sky has pedestal x N, whose root over N is the rms: so N is
        pedestal / corner_rms^2.
        """
        rms, pedestal = draw_value(self.corner_rms, rng), draw_value(self.pedestal, rng)
        return Exposure(exposure=pedestal / (rms**2 * peak), sky_level=pedestal * peak)


Noise = TwofoldNoise | SkyNoise | RelativeNoise


def expose(images: torch.Tensor, exposures: Sequence[Exposure], generator: torch.Generator) -> torch.Tensor:
    """Return the counts of exposures.

    They are Poisson with mean (rate + sky_level) x exposure, or 0 where that is negative. Under
    `shot_twice` the rate is the image plus Gaussian noise of variance
    |image| / exposure + background_rms^2, as in the authors' code, so that shot noise enters twice
    and half of an empty sky has no count at all.

    Args:
        images: (B, H, W) noiseless images [counts/s/px], on the generator's device.
        exposures: The settings of each, all of one kind of noise.
        generator: The random stream of these images.

    Returns:
        (B, H, W) int32 counts on the same device.

    Raises:
        ValueError: If a count does not fit uint16.
    """
    facts = [(row.exposure, row.sky_level, row.background_rms**2) for row in exposures]
    settings = torch.tensor(facts, dtype=torch.float64).to(images.device, images.dtype)
    time, sky_level, background = settings.T[:, :, None, None].unbind()
    rate = images
    if exposures[0].shot_twice:
        spread = (images.abs() / time).add_(background).sqrt_()
        rate = torch.addcmul(images, spread, torch.empty_like(images).normal_(generator=generator))
    mean = (rate + sky_level).mul_(time).clamp_(min=0)
    counts = torch.poisson(mean, generator=generator).to(torch.int32)
    if (most := int(counts.max())) > MOST_COUNTS:
        raise ValueError(f"{most} counts in a pixel do not fit uint16; the sky is too bright for its exposure")
    return counts
