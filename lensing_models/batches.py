"""Each epoch's shuffled and turned batches, and the validation split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from lensing_models.data.supply import Supply
from lensing_models.job import Job
from lensing_models.specs import LabelArray, TaskSpec

VALIDATED_TOGETHER = 64  # images

Chosen = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers (B,) in the training split, and how each image is turned: see `turn`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which part of each batch this process computes, of `processes` that fit one network together."""

    rank: int = 0
    processes: int = 1


class Order(Sampler[Chosen]):
    """The batches of an epoch: a function of (seed, epoch) and of each image's place in the split.

    The processes' shares of a batch together are the batch of a single process.

    Args:
        job: Its data, batch size and seed.
        share: What this process computes.

    Raises:
        ValueError: If the batch cannot be shared evenly.
    """

    def __init__(self, job: Job, share: Share = Share()) -> None:
        if job.batch_size % share.processes:
            raise ValueError(f"a batch of {job.batch_size} images cannot be shared by {share.processes} processes")
        self._job, self._share, self._epoch = job, share, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to *epoch*, counted from 0; Lightning calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._job.epoch_steps

    def __iter__(self) -> Iterator[Chosen]:
        images, size = self._job.train_images, self._job.batch_size
        rng = np.random.default_rng((self._job.seed, self._epoch))
        turns, order = rng.integers(8, size=images), rng.permutation(images)
        first = self._epoch * images if self._job.stream else 0
        for step in range(len(self)):
            chosen = order[step * size : (step + 1) * size][self._share.rank :: self._share.processes]
            yield first + chosen, turns[chosen]


class TrainingBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Turned images (B, C, H, W) and targets (B,) for what an `Order` chose."""

    def __init__(self, task: TaskSpec, supply: Supply) -> None:
        self._task, self._supply = task, supply

    def __getitem__(self, chosen: Chosen) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, turns = chosen
        images, labels = self._supply.take(numbers)
        return turn(images, turns), targets(self._task, labels).to(images.device)


class ValidationBatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Numbers (B,) and images of a process's share of the validation split, as they are."""

    def __init__(self, supply: Supply, images: int, share: Share = Share()) -> None:
        self._supply, self._numbers = supply, np.arange(share.rank, images, share.processes)

    def __len__(self) -> int:
        return -(-len(self._numbers) // VALIDATED_TOGETHER)

    def __getitem__(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = self._numbers[batch * VALIDATED_TOGETHER : (batch + 1) * VALIDATED_TOGETHER]
        return torch.from_numpy(numbers), self._supply.take(numbers)[0]


def training_loader(batches: TrainingBatches, order: Order, workers: int) -> DataLoader[Chosen]:
    """Return the loader of *batches* in *order*, made here or by *workers* processes ahead of the fit."""
    return DataLoader(
        batches,  # type: ignore[arg-type]  # torch's stub wants the sampler to give the type of an item
        batch_size=None,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        # Spawned, not forked: torch's threads do not survive a fork.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),  # the global one is the networks'
    )


def targets(task: TaskSpec, labels: LabelArray) -> torch.Tensor:
    """Return what the loss of *task* wants for *labels* (N,): int64 classes or float32 log10."""
    if task.kind == "classification":
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(np.log10(labels).astype(np.float32))


def turn(images: torch.Tensor, turns: NDArray[np.int64]) -> torch.Tensor:
    """Return (B, C, S, S) images, each turned by ``turns % 4`` quarters and mirrored if it is 4 or more."""
    turned = torch.empty_like(images)
    for code in np.unique(turns):
        rows = torch.from_numpy(np.flatnonzero(turns == code)).to(images.device)
        quarter = torch.rot90(images[rows], int(code) % 4, dims=(2, 3))
        turned[rows] = quarter.flip(3) if code >= 4 else quarter
    return turned
