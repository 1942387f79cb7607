"""What a worker process works on, and what it loads for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import BlockPlan
from bench.records import Case

if TYPE_CHECKING:
    import torch

    from lensing_models.network import LensNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one worker works on.

    Attributes:
        case: The first of its cases; the others differ in the batch size.
        checkpoint: Weights; None for random ones, whose speed is the same (the anchor).
        store: Folder of the data set.
        workdir: Folder of exported files and engines.
        reference: File of the reference outputs of the test split, or of its first images; None for the anchor.
        outputs: File for the outputs of the whole test split.
        plan: How long a block is.
    """

    case: Case
    checkpoint: Path | None
    store: Path
    workdir: Path
    reference: Path | None
    outputs: Path
    plan: BlockPlan


def load_test_images(store: Path) -> torch.Tensor:
    """Return the test images (N, C, H, W) float32 in [0, 1] of the data set in *store*."""
    from lensing_models.data.preprocess import scale_to_unit
    from lensing_models.data.store import open_store

    opened = open_store(store)
    return scale_to_unit(opened.counts(opened.indices("test")))


def load_network(job: Job) -> LensNetwork:
    """Return the job's network, fp32 on the CPU."""
    import torch

    from lensing_models.checkpoint import load_checkpoint
    from lensing_models.registry import find_architecture, find_task

    if job.checkpoint is not None:
        return load_checkpoint(job.checkpoint)[0]
    torch.manual_seed(0)
    return find_architecture(job.case.network).build(find_task(job.case.task))


def write_reference(job: Job, threads: int, most_images: int | None = None) -> None:
    """Compute the reference outputs of all test images, or the first *most_images*, and write them to their file."""
    import numpy as np
    import torch

    from bench.parity import compute_reference

    torch.set_num_threads(threads)
    if job.reference is None:
        raise ValueError("the job names no file for the reference")
    images = load_test_images(job.store)[:most_images]
    np.save(job.reference, compute_reference(load_network(job), images, job.case.device))
