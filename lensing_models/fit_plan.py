"""How many epochs a fit is given: the preset's, what a time allows, or what it was given before a kill."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from lensing_models.batches import Order, TrainingBatches, training_loader
from lensing_models.fit_module import Means, step_once, training_supply
from lensing_models.job import BEST, LAST, Identity, Job
from lensing_models.network import LensNetwork

PLAN = "fit.json"  # what a resumed fit must have in common with the one that was killed
TIMED_STEPS, UNTIMED_STEPS = 12, 3
#: Validating an epoch, and scoring at the end, beside the steps themselves.
OVERHEAD = 1.1


def planned_epochs(
    job: Job,
    folder: Path | None,
    identity: Identity,
    resume: bool,
    affordable: Callable[[float], int],
    time_budget_s: float | None,
) -> int:
    """Return as many epochs as the time allows, or as the fit that is resumed was given, and write it down.

    Where nothing is resumed, state and logs of an earlier fit in *folder* are removed.

    Args:
        job: What is fitted.
        folder: Of the fit, or None.
        identity: Of the job, as it was when its weights were read.
        resume: Whether to go on with what *folder* has; else its state is dropped.
        affordable: Gives the epochs for a wall time [s].
        time_budget_s: That time, if there is a limit.

    Raises:
        ValueError: If that fit was of something else.
    """
    asked = {"task": job.task.name, "architecture": job.architecture.label, **dataclasses.asdict(identity)}
    # What no card tells, and the state of a schedule rests on.
    asked |= {"batch_size": job.batch_size, "learning_rate": job.schedule.learning_rate}
    if folder and resume and (folder / LAST).exists():
        return _epochs_of_begun(folder / PLAN, asked)
    epochs = job.most_epochs
    if time_budget_s is not None and not job.preset.step_capped:
        epochs = affordable(time_budget_s)
    if folder:
        drop_state(folder)
        for attempt in folder.glob("attempt_*"):  # their learning curve is of another fit
            shutil.rmtree(attempt)
        draft = folder / f".{PLAN}"
        draft.write_text(json.dumps({**asked, "epochs": epochs}), encoding="utf-8")
        draft.replace(folder / PLAN)
    return epochs


def _epochs_of_begun(plan: Path, asked: Mapping[str, object]) -> int:
    """Return the epochs that a killed fit was given; ValueError if it was not what is *asked* now."""
    try:
        begun = json.loads(plan.read_text(encoding="utf-8"))
        epochs = int(begun.pop("epochs"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{plan} does not say what fit was begun ({error}); begin anew without --resume") from error
    # What an older version did not write down is not asked.
    if {**asked, **begun} != asked:
        raise ValueError(f"{plan} is of another fit ({begun}); resume with its arguments or choose another --out")
    return epochs


def drop_state(folder: Path) -> None:
    """Remove the state of an unfinished fit from *folder*."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


def affordable_epochs(
    job: Job, network: LensNetwork, means: Means, teacher: LensNetwork | None, budget_s: float
) -> int:
    """Return how many epochs fit into *budget_s*, by timing some steps; 1 or more, at most the job's.

    A step counts from batch to batch, on average: workers that start together bring as many batches at
    once and then none for a while, so those are not timed. Of several processes only this one is timed:
    what they will say to each other is not in it.

    Args:
        job: Gives the batches and the preset.
        network: A copy of it is fitted for these steps.
        means: What it is computed with.
        teacher: Answers each batch too.
        budget_s: Wall time [s].
    """
    trial = copy.deepcopy(network).to(means.device)
    optimizer = torch.optim.AdamW(trial.parameters(), lr=1e-9)
    order = Order(job, means.share)
    order.set_epoch(1)  # a stream's first epoch is stored
    loader = training_loader(TrainingBatches(job.task, training_supply(job, means)), order, means.workers)
    times = [time.perf_counter()]
    untimed = max(UNTIMED_STEPS, 2 * means.workers)
    for batch in itertools.islice(loader, untimed + max(TIMED_STEPS, 2 * means.workers)):
        step_once(job, trial, optimizer, batch, means, teacher)
        times.append(time.perf_counter())
    steps = np.diff(times)
    # Of an epoch of fewer steps the first, which waits for the workers to start, is among them.
    step_s = float(np.mean(steps[untimed:]) if len(steps) > untimed else np.median(steps))
    return int(np.clip(budget_s / (OVERHEAD * step_s * job.epoch_steps), 1, job.most_epochs))
