"""The loop of a fit, on Lightning's Trainer: schedule, weight average, validation, logs, going on after a kill."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lensing_models.batches import Epoch, Job, Validation
from lensing_models.losses import class_weights, task_loss
from lensing_models.metrics import known_metrics, score
from lensing_models.network import LensNetwork
from lensing_models.progress import ProgressLine

WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # share of the steps
CLIP_NORM = 1.0
LARGEST_DECAY = 0.999  # of the weight average
PATIENCE = 6  # epochs without a better validation after which a fit ends
#: State of an unfinished fit, and that of its best epoch; both are removed when it is done.
LAST, BEST = "last.ckpt", "best.ckpt"

Precision = Literal["bf16-mixed", "32-true"]


def run_loop(
    job: Job,
    network: LensNetwork,
    *,
    device: str,
    precision: Precision,
    progress: ProgressLine,
    folder: Path | None = None,
    resume: bool = False,
) -> int:
    """Fit *network* in place; it is left with averaged weights, those of its best epoch if epochs are validated.

    Args:
        job: What is fitted, to what, for how long. Epochs are validated unless the fit is capped.
        network: In training mode.
        device: ``cpu`` or ``cuda``.
        precision: Of the arithmetic, in Lightning's words.
        progress: Told of the steps.
        folder: Where logs, and the state to resume from, are written; None for neither.
        resume: Whether to go on from the state in *folder*, where there is one. On a CPU the
            weights are then those of a fit that was never interrupted.

    Returns:
        The steps after which the network had these weights.

    Raises:
        DivergedError: If the fit diverged.
    """
    module = _FitModule(job, network)
    validated = not job.preset.step_capped
    kept = folder if validated else None
    state = kept / LAST if kept and resume and (kept / LAST).exists() else None
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=-1,
            max_steps=job.steps,
            limit_val_batches=1.0 if validated else 0,
            num_sanity_val_steps=0,
            gradient_clip_val=CLIP_NORM,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[_Average(), _Report(progress, job.steps, device), *_watchers(module, kept, validated)],
            logger=_loggers(kept) if kept else False,
            log_every_n_steps=min(50, job.epoch_steps),
            enable_checkpointing=kept is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, ckpt_path=str(state) if state else None, weights_only=True)
    steps = int(trainer.global_step)
    if kept:
        best = torch.load(kept / BEST, map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"])
        steps = int(best["global_step"])
    if not all(bool(torch.isfinite(value).all()) for value in network.parameters()):
        raise DivergedError(job)
    return steps


class DivergedError(ValueError):
    """A weight or an output of the network of *job* is no longer a number."""

    def __init__(self, job: Job) -> None:
        rate = job.schedule.learning_rate
        super().__init__(f"the fit of {job.architecture.name} diverged; lower its learning rate, now {rate:g}")


def step_once(
    job: Job,
    network: LensNetwork,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    device: str,
    precision: Precision,
) -> None:
    """Make one step without Lightning, to time it; the device is waited for."""
    images, labels = (part.to(device) for part in batch)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = task_loss(job.task, network, network(images), labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


class _FitModule(lightning.LightningModule):
    """What Lightning is told: batches, loss, optimiser, learning rate, and how an epoch is judged."""

    def __init__(self, job: Job, network: LensNetwork) -> None:
        super().__init__()
        self.job, self.network = job, network
        self._alpha = class_weights(job.task, job.labels()) if job.task.classes else None
        self._outputs: list[torch.Tensor] = []
        self.watched = f"validation_{job.task.primary_metric}"
        better = known_metrics()[job.task.primary_metric].better
        self.better = "max" if better == "higher" else "min"

    def train_dataloader(self) -> Epoch:
        return Epoch(self.job, self.current_epoch)

    def val_dataloader(self) -> Validation:
        return Validation(self.job)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        alpha = None if self._alpha is None else self._alpha.to(self.device)
        loss = task_loss(self.job.task, self.network, self.network(images), labels, alpha)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        self._outputs.append(self.network(batch).float().cpu())

    def on_validation_epoch_end(self) -> None:
        outputs = torch.cat(self._outputs).numpy()
        self._outputs.clear()
        if not np.isfinite(outputs).all():
            raise DivergedError(self.job)
        metrics = score(self.job.task, outputs, self.job.store.labels("validation"))
        self.log_dict({f"validation_{name}": value for name, value in metrics.items()})

    def configure_optimizers(self) -> Any:  # Lightning's own alias for the many shapes allowed here is private
        parameters = list(self.network.parameters())
        groups = [
            {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.job.schedule.learning_rate)
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


def _watchers(module: _FitModule, folder: Path | None, validated: bool) -> list[Callback]:
    """Return what stops a fit that no longer improves, and keeps its best and its last epoch in *folder*."""
    watched: dict[str, Any] = {"monitor": module.watched, "mode": module.better}  # Lightning's own keywords
    watchers: list[Callback] = (
        [EarlyStopping(**watched, patience=PATIENCE, check_on_train_epoch_end=False)] if validated else []
    )
    if folder:
        file: dict[str, Any] = {"dirpath": folder, "save_on_train_epoch_end": False, "enable_version_counter": False}
        watchers.append(ModelCheckpoint(**file, filename=Path(BEST).stem, **watched))
        # Last of all, so that it holds the state of the others.
        watchers.append(ModelCheckpoint(**file, filename=Path(LAST).stem))
    return watchers


def _loggers(folder: Path) -> list[Logger]:
    """Return a CSV log in *folder*, and one for TensorBoard where it is installed; each attempt has its own."""
    attempt = f"attempt_{len(list(folder.glob('attempt_*')))}"
    loggers: list[Logger] = [CSVLogger(folder.parent, name=folder.name, version=attempt)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder.parent, name=folder.name, version=attempt))
    return loggers


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
