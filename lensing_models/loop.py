"""The loop of a fit, on Lightning's Trainer: schedule, weight average, validation, logs, going on after a kill."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from timm.layers.norm_act import convert_sync_batchnorm

from lensing_models.cluster import Cluster, environment_plugin
from lensing_models.fit_module import CLIP_NORM, DivergedError, FitModule, Means
from lensing_models.job import BEST, LAST, Job
from lensing_models.network import LensNetwork
from lensing_models.progress import ProgressLine

LARGEST_DECAY = 0.999  # of the weight average
PATIENCE = 6  # epochs without a better validation after which a fit ends


def run_loop(
    job: Job,
    network: LensNetwork,
    means: Means,
    *,
    teacher: LensNetwork | None = None,
    progress: ProgressLine,
    folder: Path | None = None,
    resume: bool = False,
) -> int:
    """Fit *network* in place; it is left with averaged weights, with a *folder* those of its best epoch.

    Args:
        job: What is fitted, to what, for how long. Epochs are validated unless the fit is capped.
        network: In training mode.
        means: What it is computed with.
        teacher: Its answers are imitated, if it is given.
        progress: Told of the steps.
        folder: Where logs, and the state to resume from, are written; None for neither.
        resume: Whether to go on from the state in *folder*, where there is one. On a CPU the
            weights are then those of a fit that was never interrupted.

    Returns:
        The steps after which the network had these weights.

    Raises:
        DivergedError: If the fit diverged.
        OSError: If the state cannot be written; what was written before is kept.
    """
    cluster = means.cluster
    # Lightning's own conversion drops the activations that timm keeps inside its batch norms.
    is_synchronised = means.device == "cuda" and cluster.processes > 1
    fitted = synchronised(network) if is_synchronised else network
    module = FitModule(job, fitted, means, teacher)
    kept = None if job.preset.step_capped else folder
    state = _state_to_resume(kept, cluster) if kept and resume else None
    with _quiet_lightning(), tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(job, module, means, kept, progress, Path(scratch))
        with _plain_errors(trainer):
            trainer.fit(module, ckpt_path=str(state) if state else None, weights_only=True)
    steps = int(trainer.global_step)
    if kept:
        # Process 0 has written it; the others may not see its disk.
        best = cluster.decide(lambda: torch.load(kept / BEST, map_location="cpu", weights_only=True))
        module.load_state_dict(best["state_dict"])
        steps = int(best["global_step"])
    if fitted is not network:
        network.load_state_dict(fitted.state_dict())
    if not all(bool(torch.isfinite(value).all()) for value in network.parameters()):
        raise DivergedError(job)
    return steps


def synchronised(network: LensNetwork) -> LensNetwork:
    """Return a copy of *network* whose batch norms look at the images of all processes; tensors keep their names."""
    copied: LensNetwork = convert_sync_batchnorm(copy.deepcopy(network))  # type: ignore[no-untyped-call]  # timm's
    return copied


def _trainer(
    job: Job, module: FitModule, means: Means, kept: Path | None, progress: ProgressLine, scratch: Path
) -> lightning.Trainer:
    """Return the trainer of a fit that keeps its logs and its state in *kept*, if that is given."""
    cluster, validated = means.cluster, not job.preset.step_capped
    return lightning.Trainer(
        accelerator="gpu" if means.device == "cuda" else "cpu",
        devices=cluster.processes_a_node,
        num_nodes=cluster.nodes,
        strategy="ddp" if cluster.processes > 1 else "auto",
        plugins=[environment_plugin()],
        default_root_dir=kept or scratch,
        use_distributed_sampler=False,
        precision=means.precision,
        max_epochs=-1,
        max_steps=job.steps,
        limit_val_batches=1.0 if validated else 0,
        num_sanity_val_steps=0,
        gradient_clip_val=CLIP_NORM,
        callbacks=[
            _Average(means.device, refreshes=kept is None),
            _Report(job, progress, means.device),
            *_watchers(module, kept, validated),
        ],
        logger=_loggers(kept) if kept else False,
        log_every_n_steps=min(50, job.epoch_steps),
        enable_checkpointing=kept is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _state_to_resume(folder: Path, cluster: Cluster) -> Path | None:
    """Return the state in *folder*, or None; ValueError if some processes see it and others do not."""
    seen = cluster.gather([(folder / LAST).exists()])
    if any(seen) and not all(seen):
        raise ValueError(f"{folder / LAST} is not seen by every process; --out must lie on a disk that all share")
    return folder / LAST if all(seen) else None


@contextmanager
def _plain_errors(trainer: lightning.Trainer) -> Iterator[None]:
    """Turn what Lightning and the loader's workers make of an error back into the error."""
    try:
        yield
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    except ValueError as error:
        text = str(error)
        if not text.startswith("Caught ValueError in DataLoader worker"):
            raise
        raise ValueError(text.strip().splitlines()[-1].removeprefix("ValueError: ")) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(f"a process that makes batches died (out of memory?): {str(error).splitlines()[0]}") from error


class _Average(WeightAveraging):
    """Lightning's weight averaging, with the ramp of `average_decay`, and batch norms that fit the average.

    Args:
        device: Where the average is kept; left to itself it would stay on the host.
        refreshes: Whether the average is what the fit ends with, not its best epoch.
    """

    def __init__(self, device: str, *, refreshes: bool) -> None:
        super().__init__(device=device, multi_avg_fn=_blend)
        self._refreshes = refreshes

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        assert isinstance(pl_module, FitModule)
        pl_module.refresh_batch_norm()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        assert isinstance(pl_module, FitModule)
        if self._refreshes:
            pl_module.refresh_batch_norm()


@torch.no_grad()
def _blend(averages: list[torch.Tensor], current: list[torch.Tensor], averaged: torch.Tensor) -> None:
    """Move *averages* towards *current* in place; integers (batch norm's counters) are copied."""
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, current, 1 - average_decay(int(averaged)))
    else:
        torch._foreach_copy_(averages, current)


class _Report(Callback):
    """Shows the loss and each epoch's validation, and ends a fit that lost it.

    On a GPU the loss is read every hundredth of the steps: reading waits for it.
    """

    def __init__(self, job: Job, progress: ProgressLine, device: str) -> None:
        self._job, self._progress = job, progress
        self._every = max(1, job.steps // 100) if device == "cuda" else 1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # Lightning's signature
        step = trainer.global_step
        if step % self._every == 0 or step == trainer.max_steps:
            # Of all processes, so that they end together.
            loss = float(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean"))
            if not math.isfinite(loss):
                raise DivergedError(self._job)
            self._progress.reach(step, f"loss {loss:.4g}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, FitModule)
        value = float(trainer.callback_metrics[pl_module.watched])
        epochs = math.ceil(self._job.steps / self._job.epoch_steps)
        name = pl_module.watched.replace("_", " ")
        self._progress.say(f"epoch {trainer.current_epoch + 1} of {epochs}: {name} {value:.4g}")


def average_decay(averaged: int) -> float:
    """Return the decay of the weight average after that many updates.

    The ramp (1 + n) / (10 + n) spans about the last tenth of a short fit; a constant 0.999 would
    keep the random weights of a fit of a hundred steps.
    """
    return min(LARGEST_DECAY, (1 + averaged) / (10 + averaged))


class _Stop(EarlyStopping):
    """Lightning's early stopping, which also ends a resumed fit whose patience was over when it was killed."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class _Keep(ModelCheckpoint):
    """Lightning's checkpoints, which know their files again where the folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Lightning's signature
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {name: here(value) for name, value in state_dict.items() if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": best})


def _watchers(module: FitModule, folder: Path | None, validated: bool) -> list[Callback]:
    """Return what stops a fit that no longer improves, and keeps its best and its last epoch in *folder*."""
    watched: dict[str, Any] = {"monitor": module.watched, "mode": module.better}  # Lightning's own keywords
    watchers: list[Callback] = (
        [_Stop(**watched, patience=PATIENCE, check_on_train_epoch_end=False)] if validated else []
    )
    if folder:
        file: dict[str, Any] = {"dirpath": folder, "save_on_train_epoch_end": False, "enable_version_counter": False}
        watchers.append(_Keep(**file, filename=Path(BEST).stem, **watched))
        # Last of all, so that it holds the state of the others.
        watchers.append(_Keep(**file, filename=Path(LAST).stem))
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
