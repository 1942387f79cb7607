"""The one training loop: a network, a data set and a preset in; rounded weights and a card out."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn

from lensing_models.batches import Epoch, Job
from lensing_models.checkpoint import Card, revision, round_weights
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.evaluate import predict
from lensing_models.losses import task_loss
from lensing_models.metrics import score
from lensing_models.network import LensNetwork
from lensing_models.preset import Preset
from lensing_models.progress import ProgressLine
from lensing_models.specs import ArchitectureSpec, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store

WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # share of the steps
CLIP_NORM = 1.0
LARGEST_DECAY = 0.999  # of the weight average


def fit(
    task: TaskSpec,
    architecture: ArchitectureSpec,
    store: Store,
    *,
    preset: Preset,
    seed: int,
    threads: int,
    device: str = "auto",
) -> tuple[LensNetwork, Card]:
    """Fit *architecture* to the training split of *store*.

    On a CPU the weights are a function of the arguments, thread count included.

    Args:
        task: What is asked of the images.
        architecture: The network, its batch size and its learning rate.
        store: Images and labels of that task.
        preset: Epochs, or the step cap.
        seed: Of the first weights, the shuffling and the augmentation.
        threads: CPU threads of torch, for the whole process from here on.
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.

    Returns:
        The network on the CPU in evaluation mode, weights rounded as a checkpoint rounds them,
        and its card.

    Raises:
        ValueError: If the data set is of another task, or the fit diverged.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    job = Job(task=task, architecture=architecture, store=store, preset=preset, seed=seed)
    network = new_network(job)
    with ProgressLine(f"fit {task.name}/{architecture.name}", job.steps) as progress:
        _run_trainer(_Fit(job, network), progress, device)
        network.to(device)
        images = 8 * job.batch_size if preset.step_capped else 2048
        refresh_batch_norm(network, store, store.indices("train")[:images])
        round_weights(network.eval())
        card = _score(job, network)
        progress.say(f"validation {task.primary_metric} {card.validation[task.primary_metric]:.4g}")
    network.to("cpu")
    return network.to(memory_format=torch.contiguous_format), card


def new_network(job: Job) -> LensNetwork:
    """Return the network with the random weights of the seed, ready for fitting.

    Its head starts at zero: equal probabilities, or the mean of the labels. timm's own start of
    the EfficientNet family (TensorFlow's, uniform in +-1/sqrt(K)) is made for a thousand classes;
    with one output it starts ten standard deviations off. For a regression the output scale is
    set to spread and mean of the training labels: the backbone sees targets of unit variance.

    The last batch norm of each residual block starts at scale zero, so that the block is the
    identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1). timm does so for ResNets alone; a
    random EfficientNet-B5 without it is so ill-conditioned that fp32 rounding moves its outputs by 1e-4.
    """
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        network = job.architecture.build(job.task)
    # The backbone is a timm model, typed as a plain module.
    for value in network.backbone.get_classifier().parameters():  # type: ignore[operator]
        nn.init.zeros_(value)
    for block in network.modules():
        if getattr(block, "has_skip", False):  # timm's name in the MobileNet and EfficientNet families
            norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)
    if job.task.kind == "regression":
        labels = job.labels().double()
        network.output_shift.fill_(labels.mean())
        network.output_scale.fill_(labels.std(correction=0).clamp_min(1e-6))
    return network.to(memory_format=torch.channels_last).train()


def refresh_batch_norm(network: nn.Module, store: Store, indices: NDArray[np.int64], batch_size: int = 32) -> None:
    """Take the statistics of batch norm anew: plain averages of *network* over these images.

    The moving averages of a short fit still hold the first weights and lag behind the averaged ones.
    """
    device = next(network.parameters()).device
    starts = range(0, len(indices), batch_size)
    update_bn(
        (scale_to_unit(store.counts(indices[start : start + batch_size])).to(device) for start in starts), network
    )


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at *step* of *steps*: linear warm-up, then cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def average_decay(averaged: int) -> float:
    """Return the decay of the weight average after that many updates.

    The ramp (1 + n) / (10 + n) spans about the last tenth of a short fit; a constant 0.999 would
    keep the random weights of a fit of a hundred steps.
    """
    return min(LARGEST_DECAY, (1 + averaged) / (10 + averaged))


def chosen_precision(network: nn.Module, device: str) -> Literal["bf16-mixed", "32-true"]:
    """Return Lightning's name of the precision that fits *network* fastest on *device*.

    On a CPU bf16 needs its own instructions and helps dense convolutions only: with two Zen 4
    cores it makes a step of ResNet18 1.7 times as fast, one of MobileNetV3-small 0.6 times.
    """
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    has_depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    abilities = torch.cpu.get_capabilities()
    has_bf16 = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return "bf16-mixed" if has_bf16 and not has_depthwise else "32-true"


class _Fit(lightning.LightningModule):
    """What Lightning is told: batches, loss, optimiser and learning rate."""

    def __init__(self, job: Job, network: LensNetwork) -> None:
        super().__init__()
        self.job, self.network = job, network

    def train_dataloader(self) -> Epoch:
        return Epoch(self.job, self.current_epoch)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return task_loss(self.job.task, self.network, self.network(images), labels)

    def configure_optimizers(self) -> Any:  # Lightning's own alias for the many shapes allowed here is private
        parameters = list(self.network.parameters())
        groups = [
            {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.job.architecture.learning_rate)
        steps = self.job.steps
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class _Average(WeightAveraging):
    """Lightning's weight averaging, with the ramp of `average_decay`."""

    def __init__(self) -> None:
        super().__init__(multi_avg_fn=_blend)


@torch.no_grad()
def _blend(averages: list[torch.Tensor], current: list[torch.Tensor], averaged: torch.Tensor) -> None:
    """Move *averages* towards *current* in place; integers (batch norm's counters) are copied."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, current, 1 - average_decay(int(averaged)))
    else:
        torch._foreach_copy_(averages, current)


class _Report(Callback):
    """Shows the loss of each step; on a GPU of a hundred steps, because reading it waits for the device."""

    def __init__(self, progress: ProgressLine, steps: int, device: str) -> None:
        self._progress, self._every = progress, max(1, steps // 100) if device == "cuda" else 1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # Lightning's signature
        step = trainer.global_step
        if step % self._every == 0 or step == trainer.max_steps:
            self._progress.reach(step, f"loss {float(outputs['loss']):.4g}")


def _run_trainer(module: _Fit, progress: ProgressLine, device: str) -> None:
    """Fit *module* in place."""
    steps = module.job.steps
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=chosen_precision(module.network, device),
            max_epochs=-1,
            max_steps=steps,
            limit_val_batches=0,
            gradient_clip_val=CLIP_NORM,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[_Average(), _Report(progress, steps, device)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
    if not all(bool(torch.isfinite(value).all()) for value in module.network.parameters()):
        row = module.job.architecture
        raise ValueError(f"the fit of {row.name} diverged; lower its learning rate, now {row.learning_rate:g}")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints and its advice on workers and loggers off the console."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)


def _score(job: Job, network: LensNetwork) -> Card:
    """Return the card of a fitted network, its metrics among it."""
    capped = job.preset.step_capped
    # Scoring a capped fit stays cheaper than the fit itself: EfficientNet-B5 would take a minute.
    most = job.steps * job.batch_size // 2 if capped else None
    scores, counts = {}, {}
    for split in ("validation", "test"):
        indices = job.store.indices(split)[:most]
        counts[split] = len(indices)
        scores[split] = score(job.task, predict(network, job.store, indices), job.store.labels(split)[:most])
    return Card(
        task=job.task.name,
        architecture=job.architecture.name,
        recipe_digest=job.store.recipe_digest,
        sky=job.store.sky,
        preset=job.preset.name,
        seed=job.seed,
        steps=job.steps,
        epochs=job.steps / job.epoch_steps,
        converged=not capped,
        scored_images=counts,
        validation=scores["validation"],
        test=scores["test"],
        revision=revision(),
        versions={name: importlib.metadata.version(name) for name in ("torch", "timm", "lightning")},
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
