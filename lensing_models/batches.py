"""What a fit is given: its data set, its sizes, and each epoch's turned and shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lensing_models.data.preprocess import scale_to_unit
from lensing_models.preset import Preset
from lensing_models.specs import ArchitectureSpec, Schedule, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One fit: what is fitted, to what, for how long, and from which weights.

    `pretrained` says whether it starts from timm's weights, from the file `weights` if there is one.
    """

    task: TaskSpec
    architecture: ArchitectureSpec
    store: Store
    preset: Preset
    seed: int
    pretrained: bool = False
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.store.task != self.task.name:
            raise ValueError(
                f"the data set holds {self.store.task!r}, not {self.task.name!r}; open the one of the task"
            )

    @property
    def schedule(self) -> Schedule:
        """Return how the network is fitted at this size of work."""
        return self.architecture.quick if self.preset.step_capped else self.architecture.full

    @property
    def batch_size(self) -> int:
        """Return the images in a step."""
        return min(self.schedule.batch_size, len(self.store.indices("train")))

    @property
    def epoch_steps(self) -> int:
        """Return the steps of an epoch; images that do not fill a batch wait for the next shuffle."""
        return len(self.store.indices("train")) // self.batch_size

    @property
    def steps(self) -> int:
        """Return the steps of the whole fit."""
        steps = self.preset.epochs * self.epoch_steps
        return min(steps, self.schedule.most_steps or steps)

    def labels(self) -> torch.Tensor:
        """Return what the loss wants for the training split: (N,) int64 classes or float32 log10."""
        labels = self.store.labels("train")
        if self.task.kind == "classification":
            return torch.from_numpy(labels.astype(np.int64))
        return torch.from_numpy(np.log10(labels).astype(np.float32))


class Epoch:
    """The batches of one epoch, a function of (seed, epoch) and of each image's place in the split."""

    def __init__(self, job: Job, epoch: int) -> None:
        self._job, self._rows, self._labels = job, job.store.indices("train"), job.labels()
        rng = np.random.default_rng((job.seed, epoch))
        self._turns = rng.integers(8, size=len(self._rows))
        self._order = rng.permutation(len(self._rows))

    def __len__(self) -> int:
        return self._job.epoch_steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = self._job.batch_size
        for step in range(len(self)):
            chosen = self._order[step * size : (step + 1) * size]
            images = scale_to_unit(self._job.store.counts(self._rows[chosen]))
            yield turn(images, self._turns[chosen]), self._labels[chosen]


class Validation:
    """The batches of the validation split: the images as they are, in order."""

    def __init__(self, job: Job, batch_size: int = 64) -> None:
        self._store, self._rows, self._size = job.store, job.store.indices("validation"), batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, len(self._rows), self._size):
            yield scale_to_unit(self._store.counts(self._rows[start : start + self._size]))


def turn(images: torch.Tensor, turns: NDArray[np.int64]) -> torch.Tensor:
    """Return (B, C, S, S) images, each turned by ``turns % 4`` quarters and mirrored if it is 4 or more."""
    turned = torch.empty_like(images)
    for code in np.unique(turns):
        rows = torch.from_numpy(np.flatnonzero(turns == code))
        quarter = torch.rot90(images[rows], int(code) % 4, dims=(2, 3))
        turned[rows] = quarter.flip(3) if code >= 4 else quarter
    return turned
