"""Pictures of how a network answers: ROC curves and a confusion matrix, or predicted against true values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lensing_models.metrics import log_softmax
from lensing_models.specs import FloatArray, LabelArray, TaskSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def confusion_matrix(outputs: FloatArray, labels: LabelArray) -> NDArray[np.int64]:
    """Return (K, K) numbers of images, by true class (rows) and answered class (columns)."""
    classes = outputs.shape[1]
    pairs = labels.astype(np.int64) * classes + outputs.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def roc_curve(probability: FloatArray, member: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rate at every threshold, from none to all; NaN without members or others.

    Args:
        probability: (N,) of being a member.
        member: (N,) whether it is one.
    """
    order = np.argsort(-probability, kind="stable")
    # One point for a group of equal probabilities: no threshold parts them.
    last = np.append(np.diff(probability[order]) != 0, True)
    with np.errstate(invalid="ignore"):
        rates = [
            np.append(0.0, np.cumsum(counted[order])[last] / np.float64(counted.sum())) for counted in (~member, member)
        ]
    return rates[0], rates[1]


def save_answers(task: TaskSpec, outputs: FloatArray, labels: LabelArray, path: Path, title: str) -> None:
    """Write a PNG of the answers (N, K) to the questions of *task* whose right answers are *labels* (N,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4) if task.classes else (4.5, 4.2), layout="constrained")
    if task.classes:
        left, right = figure.subplots(1, 2)
        _draw_roc(left, task, outputs, labels)
        _draw_confusion(right, task, outputs, labels)
    else:
        _draw_scatter(figure.subplots(), task, outputs, labels)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_roc(axis: Axes, task: TaskSpec, outputs: FloatArray, labels: LabelArray) -> None:
    probabilities = np.exp(log_softmax(outputs))
    for index, name in enumerate(task.classes):
        axis.plot(*roc_curve(probabilities[:, index], labels == index), label=f"{name} against the rest", linewidth=1.2)
    smallest = 0.5 / max(1, int(np.bincount(labels.astype(np.int64)).max()))
    axis.set_xscale("log")
    axis.set_xlim(smallest, 1)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")


def _draw_confusion(axis: Axes, task: TaskSpec, outputs: FloatArray, labels: LabelArray) -> None:
    counts = confusion_matrix(outputs, labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        dark = shares[row, column] > 0.5
        text = f"{counts[row, column]}\n{shares[row, column]:.1%}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(task.classes)), task.classes, fontsize=8)
    axis.set_yticks(range(len(task.classes)), task.classes, fontsize=8)
    axis.set_xlabel("answered")
    axis.set_ylabel("true")


def _draw_scatter(axis: Axes, task: TaskSpec, outputs: FloatArray, labels: LabelArray) -> None:
    target = task.targets[0]
    predicted = 10.0 ** outputs[:, 0].astype(np.float64)
    unit = f" [{target.unit}]" if target.unit else ""
    ends = (0, 1.05 * float(max(np.quantile(predicted, 0.999), labels.max())))
    axis.plot(labels, predicted, ".", markersize=3, alpha=0.4)
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set_xlim(ends)
    axis.set_ylim(ends)
    axis.set_xlabel(f"true {target.symbol}{unit}")
    axis.set_ylabel(f"predicted {target.symbol}{unit}")
    axis.grid(alpha=0.3)
