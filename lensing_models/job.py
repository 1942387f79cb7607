"""One fit as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lensing_models.preset import Preset
from lensing_models.specs import ArchitectureSpec, Schedule, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One fit: what is fitted, to what, for how long, and from which weights.

    Attributes:
        task: What is asked of the images.
        architecture: The network, its batch size and its learning rate.
        store: Images and labels of that task.
        preset: Epochs, or the step cap.
        epochs: Epochs; None for the preset's.
        seed: Of the first weights, the shuffling and the augmentation.
        pretrained: Start from timm's weights for colour images; see `build_network`.
        weights: File of them, where there is no internet.
        start: Checkpoint whose weights, but for the head, the fit starts from; of any task and input size.
        teacher: Checkpoint of the same task whose answers are imitated beside the labels.
        stream: Show new simulated images in each epoch after the first, instead of the stored ones again.
    """

    task: TaskSpec
    architecture: ArchitectureSpec
    store: Store
    preset: Preset
    epochs: int | None = None
    seed: int
    pretrained: bool = False
    weights: Path | None = None
    start: Path | None = None
    teacher: Path | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        if self.store.task != self.task.name:
            raise ValueError(
                f"the data set holds {self.store.task!r}, not {self.task.name!r}; open the one of the task"
            )
        if self.start and self.pretrained:
            raise ValueError(f"a fit starts from timm's weights or from {self.start}, not from both")

    @property
    def name(self) -> str:
        """Return the task and the network, as they stand in a line of progress."""
        return f"{self.task.name}/{self.architecture.label}"

    @property
    def schedule(self) -> Schedule:
        """Return how the network is fitted at this size of work."""
        return self.architecture.quick if self.preset.step_capped else self.architecture.full

    @property
    def most_epochs(self) -> int:
        """Return the epochs after which the fit ends."""
        return self.preset.epochs_for(self.task.name) if self.epochs is None else self.epochs

    @property
    def train_images(self) -> int:
        """Return the images of an epoch."""
        return len(self.store.indices("train"))

    @property
    def batch_size(self) -> int:
        """Return the images in a step, over all processes."""
        return min(self.schedule.batch_size, self.train_images)

    @property
    def epoch_steps(self) -> int:
        """Return the steps of an epoch; images that do not fill a batch wait for the next shuffle."""
        return self.train_images // self.batch_size

    @property
    def steps(self) -> int:
        """Return the steps of the whole fit."""
        steps = self.most_epochs * self.epoch_steps
        return min(steps, self.schedule.most_steps or steps)
