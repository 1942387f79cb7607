"""Rate of the fitting loop beside a bare PyTorch loop, and of the input pipeline alone, in one run.

Run it from the repository's root:

    python -m tests.benchmarks.fit --models mobilenetv3_small,resnet18

Both loops fit the same network with the same optimiser, precision and batch size and take turns. The
bare one has its batches ready in memory; no logs, no schedule, no weight average, no clipping.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lensing_models.batches import Order, TrainingBatches, training_loader
from lensing_models.data.simulate import simulate_dataset
from lensing_models.fit import choose_means, new_network
from lensing_models.fit_module import Means, training_supply
from lensing_models.job import Job
from lensing_models.loop import run_loop
from lensing_models.losses import task_loss
from lensing_models.preset import PRESETS, Split
from lensing_models.progress import ProgressLine
from lensing_models.registry import find_architecture, find_task

IMAGES = 640
UNTIMED = 2  # steps at the start of a turn


class Stopwatch(ProgressLine):
    """Notes when each step was done."""

    def __init__(self) -> None:
        super().__init__("", None, silent=True)
        self.times: list[float] = []

    def reach(self, done: int, now: str = "") -> None:
        self.times.append(time.perf_counter())


def loop_rate(job: Job, means: Means) -> float:
    """Return the images per second of our loop over one short fit."""
    watch = Stopwatch()
    run_loop(job, new_network(job), means, progress=watch)
    return rate(watch.times, job.batch_size)


def bare_rate(job: Job, means: Means, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the images per second of the loop that everybody writes."""
    network = new_network(job).to(means.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    times = []
    for step in range(job.steps):
        images, labels = batches[step % len(batches)]
        with torch.autocast(means.device, dtype=torch.bfloat16, enabled=means.precision == "bf16-mixed"):
            loss = task_loss(job.task, network, network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter())
    return rate(times, job.batch_size)


def rate(times: list[float], batch_size: int) -> float:
    """Return images per second between the steps that ended at *times* [s]."""
    return batch_size * (len(times) - 1 - UNTIMED) / (times[-1] - times[UNTIMED])


def input_rate(job: Job, means: Means) -> float:
    """Return the images per second of the batches alone."""
    loader = training_loader(TrainingBatches(job.task, training_supply(job, means)), Order(job), means.workers)
    times = [time.perf_counter() for _ in endless(loader, job.steps)]
    return rate(times, job.batch_size)


def endless(loader: object, steps: int) -> Iterator[object]:
    """Yield *steps* batches, from as many epochs as that takes."""
    while steps > 0:
        for batch in loader:
            yield batch
            steps -= 1
            if steps == 0:
                return


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="mobilenetv3_small,resnet18")
    parser.add_argument("--task", default="substructure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = find_task(arguments.task)
    with tempfile.TemporaryDirectory() as folder:
        store = simulate_dataset(task, Split(train=IMAGES, validation=1, test=1), Path(folder) / task.name)
        for name in arguments.models.split(","):
            architecture = find_architecture(name)
            steps = arguments.steps + UNTIMED + 1
            capped = dataclasses.replace(architecture.full, most_steps=steps)
            job = Job(
                task=task,
                architecture=dataclasses.replace(architecture, quick=capped),
                store=store,
                preset=PRESETS["quick"],
                epochs=steps,
                seed=0,
            )
            means = choose_means(job, new_network(job))
            ready = [tuple(part.to(means.device) for part in batch) for batch in endless(_loader(job, means), 4)]
            ours, bare, fed = [], [], []
            for _ in range(arguments.rounds):
                ours.append(loop_rate(job, means))
                bare.append(bare_rate(job, means, ready))
                fed.append(input_rate(job, means))
            ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
            surplus = statistics.median(one / other for one, other in zip(fed, bare, strict=True))
            print(
                f"{name} ({means.device}, {means.precision}, batch {job.batch_size}):"
                f" loop {statistics.median(ours):.4g}, bare {statistics.median(bare):.4g},"
                f" input alone {statistics.median(fed):.4g} img/s;"
                f" loop / bare {ratio:.3f}, input / bare {surplus:.3g}",
                flush=True,
            )


def _loader(job: Job, means: Means) -> object:
    return training_loader(TrainingBatches(job.task, training_supply(job, means)), Order(job), 0)


if __name__ == "__main__":
    main()
