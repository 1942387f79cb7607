"""The learning curve of a fit, from its logs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_log(folder: Path) -> pd.DataFrame:
    """Return the logged values of a fit by step, the attempts after a kill joined: the later one counts.

    Args:
        folder: Of the fit; its ``attempt_*/metrics.csv`` are read.

    Returns:
        Index ``step``; columns ``epoch``, ``loss`` and ``validation_*``, NaN where one was not logged.
    """
    attempts = sorted(folder.glob("attempt_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    if not attempts:
        return pd.DataFrame(columns=["epoch", "loss"], index=pd.Index([], name="step"))
    rows = pd.concat([pd.read_csv(path) for path in attempts])
    return rows.groupby("step").last().sort_index()


def save_curve(folder: Path, metric: str, title: str) -> Path | None:
    """Write ``curve.png`` into *folder*: the loss of the steps, and the validation *metric* of the epochs.

    Args:
        folder: Of the fit.
        metric: Name of the metric without ``validation_``.
        title: Above the picture.

    Returns:
        The picture; None where nothing was logged.
    """
    from matplotlib.figure import Figure

    log, column = read_log(folder), f"validation_{metric}"
    if column not in log:
        return None
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss, judged = log["loss"].dropna(), log[column].dropna()
    left.plot(loss.index, loss.to_numpy(), linewidth=0.8, color="#0072b2")
    left.set_xlabel("step")
    left.set_ylabel("training loss")
    left.set_yscale("log")
    right.plot(log["epoch"][judged.index] + 1, judged.to_numpy(), marker=".", color="#d55e00")
    right.set_xlabel("epoch")
    right.set_ylabel(f"validation {metric}, averaged weights")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    path = folder / "curve.png"
    figure.savefig(path, dpi=120)
    return path
