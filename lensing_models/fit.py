"""The one training loop: a network, a data set and a preset in; rounded weights and a card out."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import update_bn

from lensing_models.batches import Epoch, Job
from lensing_models.checkpoint import Card, revision, round_weights
from lensing_models.data.preprocess import scale_to_unit
from lensing_models.evaluate import predict
from lensing_models.loop import BEST, LAST, Precision, run_loop, step_once
from lensing_models.metrics import score
from lensing_models.network import LensNetwork, build_network
from lensing_models.preset import Preset
from lensing_models.progress import ProgressLine
from lensing_models.specs import ArchitectureSpec, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store

PLAN = "fit.json"  # what a resumed fit must have in common with the one that was killed
TIMED_STEPS, UNTIMED_STEPS = 12, 3
#: Validating an epoch, and refreshing and scoring at the end, beside the steps themselves.
OVERHEAD = 1.1


def fit(
    task: TaskSpec,
    architecture: ArchitectureSpec,
    store: Store,
    *,
    preset: Preset,
    seed: int,
    threads: int,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    time_budget_s: float | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
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
        folder: Where logs, and the state to resume from, are written; None for neither.
        resume: Whether to go on with a fit of the same arguments that was killed, if *folder* has one.
        time_budget_s: Wall time [s] to which the number of epochs is cut, schedule and all.
        pretrained: Start from timm's weights for colour images; see `build_network`.
        weights: File of them, where there is no internet.

    Returns:
        The network on the CPU in evaluation mode, weights rounded as a checkpoint rounds them,
        and its card.

    Raises:
        ValueError: If the data set is of another task, or the fit diverged.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    job = Job(
        task=task,
        architecture=architecture,
        store=store,
        preset=preset,
        seed=seed,
        pretrained=pretrained,
        weights=weights,
    )
    network = new_network(job)
    precision = chosen_precision(network, device)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    job = _planned(job, network, device, precision, folder, resume, time_budget_s)
    with ProgressLine(f"fit {task.name}/{architecture.name}", job.steps) as progress:
        steps = run_loop(
            job, network, device=device, precision=precision, progress=progress, folder=folder, resume=resume
        )
        network.to(device)
        if preset.step_capped:
            # After a longer fit the averaged statistics are better: anew from 2,048 images they cost
            # MobileNetV3-small 0.007 of its validation AUC (0.9768 to 0.9696).
            refresh_batch_norm(network, store, store.indices("train")[: 8 * job.batch_size])
        round_weights(network.eval())
        card = _score(job, network, steps=steps, converged=not preset.step_capped and job.preset == preset)
        progress.say(f"validation {task.primary_metric} {card.validation[task.primary_metric]:.4g}")
    if folder:
        _drop_state(folder)  # that of a finished fit is of no use, and large
    network.to("cpu")
    return network.to(memory_format=torch.contiguous_format), card


def _planned(
    job: Job,
    network: LensNetwork,
    device: str,
    precision: Precision,
    folder: Path | None,
    resume: bool,
    time_budget_s: float | None,
) -> Job:
    """Return *job* with as many epochs as the time allows, or as the fit that is resumed was given.

    Raises:
        ValueError: If that fit was of something else.
    """
    asked = {
        "task": job.task.name,
        "architecture": job.architecture.name,
        "recipe_digest": job.store.recipe_digest,
        "preset": job.preset.name,
        "seed": job.seed,
        "pretrained": job.pretrained,
    }
    plan = folder / PLAN if folder else None
    if plan and resume and plan.exists():
        begun = json.loads(plan.read_text(encoding="utf-8"))
        epochs = begun.pop("epochs")
        if begun != asked:
            raise ValueError(f"{plan} is of another fit ({begun}); resume with its arguments or choose another --out")
    else:
        epochs = job.preset.epochs
        if time_budget_s is not None and not job.preset.step_capped:
            epochs = affordable_epochs(job, network, device, precision, time_budget_s)
        if folder:
            _drop_state(folder)
    if plan:
        plan.write_text(json.dumps({**asked, "epochs": epochs}), encoding="utf-8")
    return dataclasses.replace(job, preset=dataclasses.replace(job.preset, epochs=epochs))


def _drop_state(folder: Path) -> None:
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


def affordable_epochs(job: Job, network: LensNetwork, device: str, precision: Precision, budget_s: float) -> int:
    """Return how many epochs fit into *budget_s*, by timing some steps; 1 or more, at most the preset's.

    Args:
        job: Gives the batches and the preset.
        network: A copy of it is fitted for these steps.
        device: ``cpu`` or ``cuda``.
        precision: Of the arithmetic.
        budget_s: Wall time [s].
    """
    trial = copy.deepcopy(network).to(device)
    optimizer = torch.optim.AdamW(trial.parameters(), lr=1e-9)
    times = []
    for _, batch in zip(range(UNTIMED_STEPS + TIMED_STEPS), Epoch(job, 0), strict=False):
        started = time.perf_counter()
        step_once(job, trial, optimizer, batch, device, precision)
        times.append(time.perf_counter() - started)
    step_s = float(np.median(times[UNTIMED_STEPS:] or times))
    return int(np.clip(budget_s / (OVERHEAD * step_s * job.epoch_steps), 1, job.preset.epochs))


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
        network = build_network(job.architecture, job.task, pretrained=job.pretrained, weights=job.weights)
    # The backbone is a timm model, typed as a plain module.
    for value in network.backbone.get_classifier().parameters():  # type: ignore[operator]
        nn.init.zeros_(value)
    for block in network.modules() if not job.pretrained else ():
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


def chosen_precision(network: nn.Module, device: str) -> Precision:
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


def _score(job: Job, network: LensNetwork, *, steps: int, converged: bool) -> Card:
    """Return the card of a fitted network, its metrics among it."""
    capped = job.preset.step_capped
    # Scoring a capped fit stays cheaper than the fit itself: EfficientNet-B5 would take a minute.
    most = steps * job.batch_size // 2 if capped else None
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
        pretrained=job.pretrained,
        steps=steps,
        epochs=steps / job.epoch_steps,
        converged=converged,
        scored_images=counts,
        validation=scores["validation"],
        test=scores["test"],
        revision=revision(),
        versions={name: importlib.metadata.version(name) for name in ("torch", "timm", "lightning")},
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
