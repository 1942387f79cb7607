"""What a task, a target, a metric and an architecture are; no torch is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lensing_models.network import LensNetwork

Kind = Literal["classification", "regression"]
FloatArray = NDArray[np.floating]
LabelArray = NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A score of outputs against labels, with its unit and the direction that is better.

    Attributes:
        name: Column name in the tables, e.g. ``auc``.
        unit: Unit of the value; empty where it is a pure number.
        better: ``higher`` or ``lower``.
        applies_to: Kinds of task it is defined for.
        compute: ``(outputs (N, K) float, labels (N,)) -> float``. Outputs are what a session
            returns: logits for classification, log10 of the target for regression.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    applies_to: tuple[Kind, ...]
    compute: Callable[[FloatArray, LabelArray], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A physical quantity that a regression task predicts.

    Attributes:
        name: Column of the catalogue that holds the true value.
        unit: Unit of the true value; empty for a fraction.
        symbol: How it is written in a text.
        valid: Lowest and highest value that a label may have, both included.
    """

    name: str
    unit: str
    symbol: str
    valid: tuple[float, float]

    def __post_init__(self) -> None:
        if not self.valid[0] < self.valid[1]:
            raise ValueError(f"target {self.name!r}: empty valid range {self.valid}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One question that a network answers about a cutout.

    Attributes:
        name: Name on the command line, e.g. ``substructure``.
        kind: ``classification`` (labels are class indices) or ``regression`` (labels are values
            of the target; the network gives their log10).
        classes: Class names in label order; empty for regression.
        targets: Predicted quantities; empty for classification.
        image_shape: Channels, height and width [px] of one image.
        pixel_scale_arcsec: Side of a pixel [arcsec].
        lens_classes: Classes of lenses whose images make the task's data; empty if it is about galaxies.
        focal_gamma: Focus of a classification's loss on images that are still wrong; 0 is cross entropy.
        balance: Power of the inverse share of a class that weighs it in the loss; 0 weighs all alike.
        primary_metric: Name of the metric that the Pareto frontier uses.
        metrics: Names of the metrics that are reported, primary first.
        source: Where the task comes from.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    image_shape: tuple[int, int, int]
    pixel_scale_arcsec: float
    lens_classes: tuple[str, ...]
    focal_gamma: float = 0.0
    balance: float = 0.0
    primary_metric: str
    metrics: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if (self.kind == "classification") != bool(self.classes):
            raise ValueError(f"task {self.name!r}: a classification needs classes, and only it")
        if (self.kind == "regression") != bool(self.targets):
            raise ValueError(f"task {self.name!r}: a regression needs targets, and only it")
        if len(self.targets) > 1 or any(target.valid[0] <= 0 for target in self.targets):
            raise ValueError(f"task {self.name!r}: the network gives the log10 of one target, which is positive")
        if self.kind == "regression" and (self.focal_gamma or self.balance):
            raise ValueError(f"task {self.name!r}: a regression has no classes to focus on or to balance")
        if not all(0 <= value < math.inf for value in (self.focal_gamma, self.balance)):
            raise ValueError(f"task {self.name!r}: focus {self.focal_gamma:g} and balance {self.balance:g} start at 0")
        if self.primary_metric not in self.metrics:
            raise ValueError(f"task {self.name!r}: primary metric {self.primary_metric!r} is not reported")

    @property
    def output_count(self) -> int:
        """Return K, the number of outputs for one image."""
        return len(self.classes) or len(self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How a network is fitted.

    Attributes:
        batch_size: Images in a step.
        learning_rate: Peak learning rate of AdamW at that batch size.
        most_steps: Steps after which a fit ends whatever its epochs; None for no cap.
    """

    batch_size: int
    learning_rate: float
    most_steps: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchitectureSpec:
    """One network family: a row of `lensing_models.architectures`.

    Attributes:
        name: Name of the family, e.g. ``resnet18``.
        timm_name: Name of the backbone in timm.
        input_size: Side [px] to which the network resizes its input, inside the graph.
        variant: How the row departs from the family's plain one, e.g. ``px150``.
        published: Published test metrics by task name; a pair of network and task is part of
            ``--models all --tasks all`` where it has an entry here.
        quick: Schedule of preset ``quick``, by which it is fitted in half a minute.
        full: Schedule of the other presets.
    """

    name: str
    timm_name: str
    input_size: int
    variant: str = "default"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    quick: Schedule
    full: Schedule = Schedule(batch_size=128, learning_rate=3e-3)

    @property
    def label(self) -> str:
        """Return the name on the command line and of checkpoints: that of the family, ``-variant`` behind it."""
        return self.name if self.variant == "default" else f"{self.name}-{self.variant}"

    def build(self, task: TaskSpec) -> LensNetwork:
        """Return the network for *task* with random weights, in evaluation mode.

        It maps images ``(B, C, H, W)`` float32 in [0, 1] to outputs ``(B, K)`` float32.
        """
        from lensing_models.network import build_network

        return build_network(self, task)
