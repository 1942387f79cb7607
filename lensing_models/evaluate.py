"""A checkpoint on a data set: python -m lensing_models.evaluate CHECKPOINT --data DIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lensing_models.command_line import Parser, run_main
from lensing_models.cores import usable_cores
from lensing_models.data.find import open_task_store
from lensing_models.metrics import known_metrics, score
from lensing_models.registry import find_task
from lensing_models.specs import FloatArray, LabelArray, Metric, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store
    from lensing_models.network import LensNetwork

Interval = tuple[float, float]


def predict(
    network: LensNetwork, store: Store, indices: NDArray[np.int64], *, batch_size: int = 32
) -> NDArray[np.float32]:
    """Return the outputs (N, K) of *network*, run eagerly in fp32 where it lies, in evaluation mode.

    Args:
        network: Its mode is restored afterwards.
        store: Holds the images.
        indices: (N,) rows of the store.
        batch_size: Images in a call; the outputs do not depend on it beyond rounding.
    """
    import torch

    from lensing_models.data.preprocess import scale_to_unit
    from lensing_models.precision import without_tf32

    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode(), without_tf32(device.type):
        parts = [
            network(scale_to_unit(store.counts(indices[start : start + batch_size])).to(device)).cpu().numpy()
            for start in range(0, len(indices), batch_size)
        ]
    network.train(was_training)
    return np.concatenate(parts)


def bootstrap(
    task: TaskSpec,
    outputs: FloatArray,
    labels: LabelArray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the percentile interval of each metric of *task* over resampled images.

    Efron and Tibshirani 1993, chapter 13. A resample on which a metric is not defined (AUC with a
    class missing) is left out of its interval; NaN where none is left.

    Args:
        task: Names the metrics.
        outputs: (N, K) as for `metrics.score`.
        labels: (N,).
        resamples: Draws of N images with replacement, the same for every metric.
        seed: Of the draws.
        level: Share of the resamples inside.
    """

    def value(metric: Metric, drawn: NDArray[np.int64]) -> float:
        return metric.compute(outputs[drawn], labels[drawn])

    return _resample(task, value, len(labels), resamples, seed, level)


def bootstrap_difference(
    task: TaskSpec,
    outputs: FloatArray,
    others: FloatArray,
    labels: LabelArray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return the percentile interval of the difference of each metric between two networks on the same images.

    Each resample draws images, and both networks answer for the same ones: what makes an image hard for
    both cancels, so the interval is narrower than the two networks' own suggest.

    Args:
        task: Names the metrics.
        outputs: (N, K) as for `metrics.score`; the difference is theirs less that of *others*.
        others: (N, K) of the other network, in the same order.
        labels: (N,).
        resamples: As for `bootstrap`.
        seed: As for `bootstrap`.
        level: As for `bootstrap`.

    Raises:
        ValueError: If the two do not answer the same question about the same images.
    """
    if outputs.shape != others.shape:
        raise ValueError(f"outputs {outputs.shape} and {others.shape} are not of the same images and classes")

    def value(metric: Metric, drawn: NDArray[np.int64]) -> float:
        return metric.compute(outputs[drawn], labels[drawn]) - metric.compute(others[drawn], labels[drawn])

    return _resample(task, value, len(labels), resamples, seed, level)


def _resample(
    task: TaskSpec,
    value: Callable[[Metric, NDArray[np.int64]], float],
    images: int,
    resamples: int,
    seed: int,
    level: float,
) -> dict[str, Interval]:
    """Return the percentile interval of *value* for each metric over draws of as many *images*; NaN without one."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(images, size=images) for _ in range(resamples)]
    tail = (1 - level) / 2
    intervals = {}
    for name in task.metrics:
        values = np.array([value(known_metrics()[name], drawn) for drawn in draws])
        defined = values[~np.isnan(values)]
        low, high = np.quantile(defined, (tail, 1 - tail)) if len(defined) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def render(task: TaskSpec, values: Mapping[str, float], intervals: Mapping[str, Interval]) -> str:
    """Return a small table: a line for each metric with its 95 % interval."""
    rows = known_metrics()
    lines = [f"{'metric':<12}{'value':>12}   95 % interval"]
    for name in task.metrics:
        low, high = intervals[name]
        lines.append(f"{name:<12}{values[name]:>12.5g}   {low:.5g} to {high:.5g} {rows[name].unit}".rstrip())
    return "\n".join(lines)


def render_difference(task: TaskSpec, outputs: FloatArray, others: FloatArray, labels: LabelArray) -> str:
    """Return a table as `render` does of how much *outputs* score more than *others*, paired."""
    values, other_values = score(task, outputs, labels), score(task, others, labels)
    differences = {name: values[name] - other_values[name] for name in task.metrics}
    return render(task, differences, bootstrap_difference(task, outputs, others, labels))


def _answers_of(checkpoint: Path, task: TaskSpec, store: Store, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the outputs of *checkpoint*; ValueError if it answers another question."""
    from lensing_models.checkpoint import load_checkpoint

    network, card = load_checkpoint(checkpoint)
    if card.task != task.name:
        raise ValueError(f"{checkpoint} is of task {card.task!r}, not {task.name!r}")
    return predict(network, store, indices)


def main(argv: Sequence[str]) -> int:
    """Evaluate what *argv* names and print the table."""
    parser = Parser(prog="lensing_models.evaluate", description="Test metrics of a checkpoint, eager fp32.")
    parser.add_argument("checkpoint", type=Path, help="the .safetensors file; its card lies beside it")
    parser.add_argument("--data", type=Path, required=True, help="a data set, or a folder of one for each task")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path, metavar="PNG", help="picture: ROC and confusion, or predicted against true")
    parser.add_argument("--against", type=Path, metavar="CHECKPOINT", help="difference from it, on the same images")
    parser.add_argument("--breakdown", action="store_true", help="on which true parameters the errors depend")
    parser.add_argument("--threads", type=int, default=usable_cores())
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; give 1 or more")

    from lensing_models.checkpoint import load_checkpoint, verify_checkpoint
    from lensing_models.job import fitted_to_another_split

    card = verify_checkpoint(arguments.checkpoint)
    task = find_task(card.task)
    store = open_task_store(arguments.data, task.name)

    import torch

    torch.set_num_threads(arguments.threads)
    network, _ = load_checkpoint(arguments.checkpoint)
    indices = store.indices(arguments.split)
    if not len(indices):
        raise ValueError(f"{store.folder} has no {arguments.split} images; choose another --split or simulate some")
    outputs, labels = predict(network, store, indices), store.labels(arguments.split)
    print(f"{task.name}/{card.architecture} ({card.state}), {len(indices)} {arguments.split} images, eager fp32")
    if store.recipe_digest != card.recipe_digest:
        print(
            f"another data set than it was fitted on: {store.sky} {store.recipe_digest[:12]}, not "
            f"{card.sky} {card.recipe_digest[:12]}"
        )
    for path in filter(None, (arguments.checkpoint, arguments.against)):
        if fitted_to_another_split(verify_checkpoint(path), store):
            print(f"{path} was fitted to another split of {store.sky}: IT MAY HAVE BEEN FITTED TO THESE IMAGES")
    print(render(task, score(task, outputs, labels), bootstrap(task, outputs, labels)))
    if arguments.against:
        print(f"this one minus {arguments.against}, on the same images:")
        print(render_difference(task, outputs, _answers_of(arguments.against, task, store, indices), labels))
    if arguments.breakdown:
        from lensing_models.breakdown import break_down, render_breakdown

        print(render_breakdown(task, break_down(task, store.catalog.iloc[indices], outputs)))
    if arguments.out:
        from lensing_models.picture import save_answers

        title = f"{task.name}/{card.architecture} ({card.state}), {len(indices)} {arguments.split} images"
        save_answers(task, outputs, labels, arguments.out, title)
        print(arguments.out)
    return 0


if __name__ == "__main__":
    run_main(main)
