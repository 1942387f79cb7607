"""What Lightning is told of a fit: batches, loss, optimiser, learning rate, and how an epoch is judged."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from lensing_models.batches import Order, Share, TrainingBatches, ValidationBatches, targets, training_loader
from lensing_models.cluster import Cluster
from lensing_models.data.supply import FreshImages, ResidentImages, StoredImages, Supply
from lensing_models.job import Job
from lensing_models.losses import class_weights, distillation_loss, task_loss
from lensing_models.metrics import known_metrics, score
from lensing_models.network import LensNetwork
from lensing_models.specs import TaskSpec

WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # share of the steps
CLIP_NORM = 1.0
REFRESH_BATCHES = 16  # from which the statistics of batch norm are taken

Precision = Literal["bf16-mixed", "32-true"]
ALONE = Cluster()


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What a fit is computed with; the weights do not depend on `workers`.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: Of the arithmetic, in Lightning's words.
        workers: Processes that make batches ahead of the fit; 0 for none.
        resident: Whether the images lie in the memory of the device.
        cluster: The processes that fit together.
    """

    device: str = "cpu"
    precision: Precision = "32-true"
    workers: int = 0
    resident: bool = False
    cluster: Cluster = ALONE

    @property
    def share(self) -> Share:
        """Return which part of a batch is this process's."""
        return Share(rank=self.cluster.rank, processes=self.cluster.processes)


class DivergedError(ValueError):
    """A weight or an output of the network of *job* is no longer a number."""

    def __init__(self, job: Job) -> None:
        rate = job.schedule.learning_rate
        super().__init__(f"the fit of {job.architecture.label} diverged; lower its learning rate, now {rate:g}")


def step_once(
    job: Job,
    network: LensNetwork,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    means: Means,
    teacher: LensNetwork | None = None,
) -> None:
    """Make one step without Lightning, to time it; the device is waited for."""
    images, labels = (part.to(means.device) for part in batch)
    with torch.autocast(means.device, dtype=torch.bfloat16, enabled=means.precision == "bf16-mixed"):
        loss = batch_loss(job.task, network, images, labels, teacher)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    if means.device == "cuda":
        torch.cuda.synchronize()


def batch_loss(
    task: TaskSpec,
    network: LensNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    teacher: LensNetwork | None,
    alpha: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a batch, with the teacher's answers to these very images if there is one."""
    outputs = network(images)
    if teacher is None:
        return task_loss(task, network, outputs, labels, alpha)
    with torch.no_grad():
        taught = teacher(images)
    return distillation_loss(task, network, outputs, labels, taught, alpha)


def training_supply(job: Job, means: Means) -> Supply:
    """Return where the training images come from."""
    if job.stream:
        return FreshImages(job.store)
    return ResidentImages(job.store, "train", means.device) if means.resident else StoredImages(job.store, "train")


class _Aside:
    """A network that is no part of the module that has it: not fitted, averaged, saved or copied."""

    def __init__(self, network: LensNetwork | None) -> None:
        self.network = network

    def __deepcopy__(self, memo: object) -> _Aside:
        return self


class FitModule(lightning.LightningModule):
    """What Lightning is told: batches, loss, optimiser, learning rate, and how an epoch is judged."""

    def __init__(self, job: Job, network: LensNetwork, means: Means, teacher: LensNetwork | None) -> None:
        super().__init__()
        self.job, self.network, self._means = job, network, means
        self._batches = TrainingBatches(job.task, training_supply(job, means))
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._has_statistics = any(norm.training for norm in norms)
        self._teacher = _Aside(teacher)
        self._alpha = (
            class_weights(job.task, targets(job.task, job.store.labels("train"))) if job.task.classes else None
        )
        self._answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.watched = f"validation_{job.task.primary_metric}"
        better = known_metrics()[job.task.primary_metric].better
        self.better = "max" if better == "higher" else "min"

    def train_dataloader(self) -> Any:  # Lightning takes any iterable
        """Return the batches of the epoch that the sampler is set to."""
        return training_loader(self._batches, Order(self.job, self._means.share), self._means.workers)

    def refresh_batch_norm(self) -> None:
        """Take the statistics of batch norm anew for the weights of this moment, from batches as the fit sees them.

        The moving averages lag behind weights that still move fast, and the averaged weights are none
        that they were ever taken for: in the ninth epoch of a fit to masses that alone was an R2 of
        -0.06 instead of 0.45. On images that are not turned it would cost a classifier 0.006 of its AUC.
        A network whose batch norms are frozen keeps them.
        """
        if not self._has_statistics:
            return
        order = Order(self.job, self._means.share)
        order.set_epoch(0 if self.job.stream else self.current_epoch)  # a stream's first epoch is stored
        images = (self._batches[chosen][0].to(self.device) for chosen in itertools.islice(order, REFRESH_BATCHES))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._means.precision == "bf16-mixed"):
            update_bn(images, self.network)
        # Each process has seen its own images: all are to judge, and to keep, one network.
        self._means.cluster.average(value for name, value in self.network.named_buffers() if "running_" in name)

    def val_dataloader(self) -> Any:  # as above
        """Return this process's share of the validation split."""
        supply = StoredImages(self.job.store, "validation")
        return DataLoader(ValidationBatches(supply, len(supply), self._means.share), batch_size=None)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the loss of this process's share of a batch."""
        alpha = None if self._alpha is None else self._alpha.to(self.device)
        loss = batch_loss(self.job.task, self.network, *batch, self._teacher.network, alpha)
        self.log("loss", loss, sync_dist=self._means.cluster.processes > 1)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Keep the outputs for the end of the epoch."""
        numbers, images = batch
        self._answers.append((numbers.cpu(), self.network(images).float().cpu()))

    def on_validation_epoch_end(self) -> None:
        """Judge the epoch on the outputs of all processes; DivergedError if one is not finite."""
        numbers, outputs = (torch.cat(parts) for parts in zip(*self._means.cluster.gather(self._answers), strict=True))
        self._answers.clear()
        outputs = outputs[numbers.argsort()]
        if not bool(torch.isfinite(outputs).all()):
            raise DivergedError(self.job)
        metrics = score(self.job.task, outputs.numpy(), self.job.store.labels("validation"))
        # Every process has the same.
        self.log_dict({f"validation_{name}": value for name, value in metrics.items()}, rank_zero_only=False)

    def configure_optimizers(self) -> Any:  # Lightning's own alias for the many shapes allowed here is private
        """Return AdamW, whose weight decay spares biases and batch norm, and the rate by the step."""
        parameters = list(self.network.parameters())
        groups = [
            {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.job.schedule.learning_rate)
        steps = self.job.steps
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at *step* of *steps*: linear warm-up, then cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
