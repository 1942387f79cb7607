"""Quality metrics, one row each: outputs of a network against the labels. NumPy only, no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lensing_models.specs import FloatArray, Kind, LabelArray, Metric, TaskSpec


def known_metrics() -> dict[str, Metric]:
    """Return every quality metric by name."""
    return {row.name: row for row in METRICS}


def score(task: TaskSpec, outputs: FloatArray, labels: LabelArray) -> dict[str, float]:
    """Return the metrics that *task* reports, primary first.

    Args:
        task: Names the metrics.
        outputs: (N, K) what a session returns: logits, or log10 of the target.
        labels: (N,) class indices, or values of the target.

    Returns:
        Values by metric name; NaN where a metric is not defined on these labels (AUC with a class
        missing, R2 of labels that are all equal).

    Raises:
        ValueError: If the shapes do not fit, there are no images, or an output is not finite.
    """
    if outputs.shape != (len(labels), task.output_count) or len(labels) == 0:
        wanted = f"({len(labels)}, {task.output_count})"
        raise ValueError(f"task {task.name!r}: outputs are {outputs.shape} for {len(labels)} labels, not {wanted}")
    if bad := int(np.count_nonzero(~np.isfinite(outputs).all(axis=1))):
        raise ValueError(f"task {task.name!r}: outputs are not finite for {bad} of {len(labels)} images")
    rows = known_metrics()
    return {name: rows[name].compute(outputs, labels) for name in task.metrics}


def log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    """Return log probabilities (N, K) of *logits* (N, K), in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def auc_one_vs_rest(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the area under the ROC curve, one class against the rest, averaged over classes.

    For each class it is the share of (member, other) pairs in which the member has the higher
    probability, a tie counting one half (Mann and Whitney 1947); NaN if a class has no image.
    """
    probabilities = np.exp(log_softmax(outputs))
    areas = []
    for index in range(outputs.shape[1]):
        members = probabilities[labels == index, index]
        others = np.sort(probabilities[labels != index, index])
        if not len(members) or not len(others):
            return math.nan
        below = np.searchsorted(others, members, side="left")
        not_above = np.searchsorted(others, members, side="right")
        areas.append(float((below + not_above).mean()) / (2 * len(others)))
    return float(np.mean(areas))


def accuracy(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the share of images whose highest logit is that of their class."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def macro_recall(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the share of each class that is found, averaged over classes; NaN if a class has no image.

    A rare class counts as much as a common one, which accuracy hides.
    """
    found = outputs.argmax(axis=1) == labels
    shares = [found[labels == index] for index in range(outputs.shape[1])]
    return float(np.mean([share.mean() for share in shares])) if all(map(len, shares)) else math.nan


def log_loss(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the mean negative log probability of the true class [nat]."""
    return float(-np.take_along_axis(log_softmax(outputs), labels[:, None].astype(np.int64), axis=1).mean())


def mean_squared_error(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the mean squared error of the target itself, comparable with published values."""
    return float(np.mean(residual(outputs, labels) ** 2))


def mean_squared_error_log10(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the mean squared error of log10 of the target [dex^2]."""
    return float(np.mean((outputs[:, 0].astype(np.float64) - np.log10(labels)) ** 2))


def r2(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the share of the target's variance that is explained; NaN if it has no variance."""
    variance = float(np.var(labels))
    return 1.0 - mean_squared_error(outputs, labels) / variance if variance > 0 else math.nan


def bias(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the mean of predicted minus true target; it has a sign, and 0 is best."""
    return float(residual(outputs, labels).mean())


def scatter(outputs: FloatArray, labels: LabelArray) -> float:
    """Return the standard deviation (divisor N) of predicted minus true target."""
    return float(residual(outputs, labels).std())


def residual(outputs: FloatArray, labels: LabelArray) -> NDArray[np.float64]:
    """Return predicted minus true target (N,); a huge output becomes inf, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(10.0 ** outputs[:, 0].astype(np.float64) - labels, dtype=np.float64)


_CLASSES: tuple[Kind, ...] = ("classification",)
_VALUES: tuple[Kind, ...] = ("regression",)

METRICS: tuple[Metric, ...] = (
    Metric(name="auc", unit="", better="higher", applies_to=_CLASSES, compute=auc_one_vs_rest),
    Metric(name="accuracy", unit="", better="higher", applies_to=_CLASSES, compute=accuracy),
    Metric(name="macro_recall", unit="", better="higher", applies_to=_CLASSES, compute=macro_recall),
    Metric(name="log_loss", unit="nat", better="lower", applies_to=_CLASSES, compute=log_loss),
    Metric(name="mse", unit="", better="lower", applies_to=_VALUES, compute=mean_squared_error),
    Metric(name="mse_log10", unit="dex^2", better="lower", applies_to=_VALUES, compute=mean_squared_error_log10),
    Metric(name="r2", unit="", better="higher", applies_to=_VALUES, compute=r2),
    Metric(name="bias", unit="", better="lower", applies_to=_VALUES, compute=bias),
    Metric(name="scatter", unit="", better="lower", applies_to=_VALUES, compute=scatter),
)
