"""What a worker process works on, and what it loads for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.measure import BlockPlan
from bench.records import Case, Scalar

if TYPE_CHECKING:
    import torch

    from lensing_models.data.store import Store
    from lensing_models.network import LensNetwork

#: Images of the training split by which a network is quantised, or all if there are fewer.
CALIBRATION_IMAGES = 192
#: Images of a job without a data set.
NOISE_IMAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one worker works on.

    Attributes:
        case: The first of its cases; the others differ in the batch size.
        checkpoint: Weights; None for random ones, whose speed is the same (the anchors).
        store: Folder of the data set; None for noise in its place (the anchors).
        workdir: Folder of exported files and engines.
        reference: File of the reference outputs of the test split, or of its first images; None for the anchors.
        outputs: File for the outputs of the whole test split.
        plan: How long a block is.
        settings: Of the runtime, by name; what is not named is at its default (`bench.knob`).
    """

    case: Case
    checkpoint: Path | None
    store: Path | None
    workdir: Path
    reference: Path | None
    outputs: Path
    plan: BlockPlan
    settings: Mapping[str, Scalar] = field(default_factory=dict)


def load_test_images(store: Path) -> torch.Tensor:
    """Return the test images (N, C, H, W) float32 in [0, 1] of the data set in *store*."""
    from lensing_models.data.preprocess import scale_to_unit
    from lensing_models.data.store import open_store

    opened = open_store(store)
    return scale_to_unit(opened.counts(opened.indices("test")))


def timed_images(job: Job) -> torch.Tensor:
    """Return the test images of the job's data set, or `NOISE_IMAGES` of noise of the same shape, always the same."""
    if job.store is not None:
        return load_test_images(job.store)
    import torch

    from lensing_models.registry import find_task

    shape = (NOISE_IMAGES, *find_task(job.case.task).image_shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


class TrainingImages:
    """A `Calibration`: images of the training split of the data set in *store*, evenly spaced by their labels.

    So each class has its share, and masses of all sizes, whatever the order of the store: one that holds class after
    class would give all of one to whoever takes the first, and one that holds them in turn to whoever takes
    each third. They come in an order drawn once, so that any part of them is a sample, too.
    """

    def __init__(self, store: Path, count: int = CALIBRATION_IMAGES) -> None:
        self._folder, self._count = store, count

    @cached_property
    def _store(self) -> Store:
        from lensing_models.data.store import open_store

        return open_store(self._folder)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return which rows of the store they are."""
        rows = self._store.indices("train")
        if not len(rows):
            raise ValueError(f"{self._folder} has no training images, by which int8 is calibrated")
        by_label = rows[np.argsort(self._store.labels("train"), kind="stable")]
        count = min(self._count, len(rows))
        chosen = by_label[np.arange(count) * len(rows) // count]
        return chosen[np.random.default_rng(0).permutation(count)]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the store's bytes, as stated, and of the rows."""
        named = f"{self._store.manifest.content_sha256} {self.rows.tolist()}"
        return hashlib.sha256(named.encode()).hexdigest()

    def images(self) -> torch.Tensor:
        """Return the images (N, C, H, W) float32 in [0, 1]."""
        from lensing_models.data.preprocess import scale_to_unit

        return scale_to_unit(self._store.counts(self.rows))


def load_network(job: Job) -> LensNetwork:
    """Return the job's network, fp32 on the CPU, with the images by which it may be quantised."""
    import torch

    from lensing_models.checkpoint import load_checkpoint
    from lensing_models.registry import find_architecture, find_task

    if job.checkpoint is not None:
        network = load_checkpoint(job.checkpoint)[0]
    else:
        torch.manual_seed(0)
        network = find_architecture(job.case.network).build(find_task(job.case.task))
    if job.store is not None:
        network.calibration = TrainingImages(job.store)
    return network


def write_reference(job: Job, threads: int, most_images: int | None = None) -> None:
    """Compute the reference outputs of all test images, or the first *most_images*, and write them to their file."""
    import numpy as np
    import torch

    from bench.parity import compute_reference

    torch.set_num_threads(threads)
    if job.reference is None or job.store is None:
        raise ValueError("the job names no file for the reference, or no data")
    images = load_test_images(job.store)[:most_images]
    np.save(job.reference, compute_reference(load_network(job), images, job.case.device))
