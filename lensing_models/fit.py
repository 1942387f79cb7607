"""The one training loop: a network, a data set and a preset in; rounded weights and a card out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lensing_models.batches import targets
from lensing_models.checkpoint import Card, load_checkpoint, revision, round_weights
from lensing_models.cluster import find_device, join_cluster
from lensing_models.cores import usable_cores
from lensing_models.evaluate import bootstrap, predict
from lensing_models.fit_module import WEIGHT_DECAY, Means, Precision
from lensing_models.fit_plan import affordable_epochs, planned_epochs
from lensing_models.job import Identity, Job
from lensing_models.loop import run_loop
from lensing_models.metrics import score
from lensing_models.network import LensNetwork, build_network
from lensing_models.progress import ProgressLine

if TYPE_CHECKING:
    from lensing_models.data.manifest import SplitName
    from lensing_models.data.store import Store
    from lensing_models.specs import LabelArray

MOST_WORKERS = 8
RESIDENT_SHARE = 0.3  # of the free memory of a GPU, for the training images


def fit(
    job: Job,
    *,
    threads: int,
    device: str = "auto",
    workers: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
    time_budget_s: float | None = None,
) -> tuple[LensNetwork, Card]:
    """Fit a network as *job* says.

    On a CPU the weights are a function of the job, the threads and the number of processes that
    fit together (`cluster.join_cluster`); each of these returns the same.

    Args:
        job: What is fitted, to what, for how long.
        threads: CPU threads of torch, for the whole process from here on.
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.
        workers: Processes that make batches ahead of the fit; None for as many as pay.
        folder: Where logs, and the state to resume from, are written; None for neither. The state
            stays, for whoever writes the checkpoint to drop it then: `fit_plan.drop_state`.
        resume: Whether to go on with a fit of the same job that was killed, if *folder* has one.
        time_budget_s: Wall time [s] to which the number of epochs is cut, schedule and all.

    Returns:
        The network on the CPU in evaluation mode, weights rounded as a checkpoint rounds them,
        and its card.

    Raises:
        ValueError: If the teacher or the start does not fit, there is no such device, or the fit diverged.
        OSError: If the state cannot be written; what was written before is kept.
    """
    begun_s = time.perf_counter()
    torch.set_num_threads(threads)
    identity = job.identity()
    teacher = load_checkpoint(job.teacher)[0].requires_grad_(False) if job.teacher else None
    network = new_network(job)
    means = choose_means(job, network, device, workers)
    job.check(means.cluster.processes)
    if teacher:
        teacher.to(means.device).to(memory_format=torch.channels_last)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    affordable = partial(affordable_epochs, job, network, means, teacher)
    planned = means.cluster.decide(lambda: planned_epochs(job, folder, identity, resume, affordable, time_budget_s))
    cut = dataclasses.replace(job, epochs=planned)
    with ProgressLine(f"fit {job.name}", cut.steps, silent=means.cluster.rank > 0) as progress:
        steps = run_loop(cut, network, means, teacher=teacher, progress=progress, folder=folder, resume=resume)
        network.to(means.device)
        round_weights(network.eval())
        card = _score(cut, network, identity, steps=steps, whole=planned == job.most_epochs)
        made_with: dict[str, str | float] = {
            "batch_size": job.batch_size,
            "learning_rate": job.schedule.learning_rate,
            "weight_decay": WEIGHT_DECAY,
            "device": means.device,
            "precision": means.precision,
            "threads": threads,
            "wall_s": round(time.perf_counter() - begun_s, 1),
        }
        card = dataclasses.replace(card, processes=means.cluster.processes, fitted_with=made_with)
        progress.say(f"validation {job.task.primary_metric} {card.validation[job.task.primary_metric]:.4g}")
    network.to("cpu")
    return network.to(memory_format=torch.contiguous_format), card


def choose_means(job: Job, network: nn.Module, device: str = "auto", workers: int | None = None) -> Means:
    """Return what *job* is computed with here.

    Args:
        job: Says how large the images are, and whether they are simulated on the way.
        network: Decides the precision.
        device: As for `fit`.
        workers: As for `fit`.
    """
    device = find_device(device)
    cluster = join_cluster(device)
    # Workers make batches on the host; what lies on the device does not travel between processes.
    resident = device == "cuda" and not job.stream and not workers and _fits(job.store)
    if workers is None:
        # On a CPU they would take the cores of the fit; a GPU must be fed.
        cores = usable_cores() // cluster.processes_a_node
        workers = 0 if device == "cpu" or resident else min(MOST_WORKERS, max(1, cores - 1))
    return Means(
        device=device,
        precision=chosen_precision(network, device),
        workers=workers,
        resident=resident,
        cluster=cluster,
    )


def _fits(store: Store) -> bool:
    """Say whether the training images take no more than a share of the free memory of the GPU."""
    recipe = store.manifest.recipe
    image_bytes = np.dtype(store.manifest.dtype).itemsize * math.prod(recipe.image_shape)
    return bool(recipe.sizes["train"] * image_bytes <= RESIDENT_SHARE * torch.cuda.mem_get_info()[0])


def new_network(job: Job) -> LensNetwork:
    """Return the network with the random weights of the seed, ready for fitting.

    Its head starts at zero: equal probabilities, or the mean of the labels. timm's own start of
    the EfficientNet family (TensorFlow's, uniform in +-1/sqrt(K)) is made for a thousand classes;
    with one output it starts ten standard deviations off. For a regression the output scale is
    set to spread and mean of the training labels: the backbone sees targets of unit variance.

    The last batch norm of each residual block starts at scale zero, so that the block is the
    identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1). timm does so for ResNets alone; a
    random EfficientNet-B5 without it is so ill-conditioned that fp32 rounding moves its outputs by 1e-4.

    Raises:
        ValueError: If `Job.start` is of another kind of network.
    """
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        network = build_network(job.architecture, job.task, pretrained=job.pretrained, weights=job.weights)
    # The backbone is a timm model, typed as a plain module.
    for value in network.backbone.get_classifier().parameters():  # type: ignore[operator]
        nn.init.zeros_(value)
    if job.start:
        _take_weights(job, network, job.start)
    elif not job.pretrained:
        for block in network.modules():
            if getattr(block, "has_skip", False):  # timm's name in the MobileNet and EfficientNet families
                norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
                nn.init.zeros_(norms[-1].weight)
    if job.task.kind == "regression":
        labels = targets(job.task, job.store.labels("train")).double()
        network.output_shift.fill_(labels.mean())
        network.output_scale.fill_(labels.std(correction=0).clamp_min(1e-6))
    return network.to(memory_format=torch.channels_last).train()


def _take_weights(job: Job, network: LensNetwork, path: Path) -> None:
    """Copy the backbone of the checkpoint *path*, but for its head; ValueError if it is of another kind."""
    backbone = network.backbone
    head = {id(value) for value in backbone.get_classifier().parameters()}  # type: ignore[operator]  # as above
    wanted = {name for name, value in backbone.state_dict(keep_vars=True).items() if id(value) not in head}
    other, card = load_checkpoint(path)
    job.refuse_other_split(path, card)
    given = other.backbone.state_dict()
    own = backbone.state_dict()
    if misfits := [name for name in sorted(wanted) if name not in given or given[name].shape != own[name].shape]:
        raise ValueError(f"{path} ({card.task}/{card.architecture}) is no start for this network: {misfits[0]} differs")
    backbone.load_state_dict({name: given[name] for name in wanted}, strict=False)


def chosen_precision(network: nn.Module, device: str) -> Precision:
    """Return Lightning's name of the precision that fits *network* fastest on *device*.

    On a CPU bf16 needs its own instructions and helps dense convolutions only: with two Zen 4
    cores it makes a step of ResNet18 1.7 times as fast, one of MobileNetV3-small 0.6 times.
    """
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    has_depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    abilities = torch.cpu.get_capabilities()
    has_bf16 = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return "bf16-mixed" if has_bf16 and not has_depthwise else "32-true"


def _score(job: Job, network: LensNetwork, identity: Identity, *, steps: int, whole: bool) -> Card:
    """Return the card of a network that *job* has fitted; *whole*: its schedule was the preset's."""
    capped = job.preset.step_capped
    # Scoring a capped fit stays cheaper than the fit itself: EfficientNet-B5 would take a minute.
    most = steps * job.batch_size // 2 if capped else None
    scored: dict[str, tuple[NDArray[np.float32], LabelArray]] = {}
    splits: tuple[SplitName, ...] = ("validation", "test")
    for split in splits:
        indices = job.store.indices(split)[:most]
        scored[split] = predict(network, job.store, indices), job.store.labels(split)[:most]
    values = {split: score(job.task, *answers) for split, answers in scored.items()}
    return Card(
        task=job.task.name,
        architecture=job.architecture.label,
        recipe_digest=identity.recipe_digest,
        sky=job.store.sky,
        archive=job.store.manifest.archive,
        input_size=network.input_size,
        preset=identity.preset,
        seed=identity.seed,
        pretrained=identity.pretrained,
        pretrained_file=identity.pretrained_file,
        start=identity.start,
        teacher=identity.teacher,
        stream=identity.stream,
        focal_gamma=identity.focal_gamma,
        balance=identity.balance,
        steps=steps,
        epochs=steps / job.epoch_steps,
        schedule_epochs=job.steps / job.epoch_steps,
        converged=whole and not capped,
        scored_images={split: len(labels) for split, (_, labels) in scored.items()},
        validation=values["validation"],
        test=values["test"],
        intervals=bootstrap(job.task, *scored["test"]),
        revision=revision(),
        versions={name: importlib.metadata.version(name) for name in ("torch", "timm", "lightning")},
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
