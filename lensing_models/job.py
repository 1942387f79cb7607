"""One fit as it is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lensing_models.checkpoint import Card, verify_checkpoint
from lensing_models.metrics import score
from lensing_models.preset import Preset
from lensing_models.registry import find_architecture, find_task
from lensing_models.specs import ArchitectureSpec, Schedule, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.manifest import SplitName
    from lensing_models.data.store import Store


#: State of an unfinished fit, and that of its best epoch; both are removed when it is done.
LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What two fits of a pair must have in common to be one: fields of `Card`, digests taken at one moment."""

    recipe_digest: str
    preset: str
    seed: int
    pretrained: bool
    pretrained_file: str
    start: str
    teacher: str
    stream: bool
    focal_gamma: float
    balance: float


def fitted_to_another_split(card: Card, store: Store) -> bool:
    """Return whether a network may have been fitted to test images of *store*, an archive that was imported twice.

    A simulated image belongs to one split whatever the seed and the sizes, so no other simulated set has it. Two
    archives of one kind are two only if both are known; that a part of one is in the other is not noticed.
    """
    from lensing_models.data.simulate import SOURCES

    if card.sky != store.sky or store.sky in SOURCES or card.recipe_digest == store.recipe_digest:
        return False
    known = bool(card.archive and store.manifest.archive)
    return not known or card.archive == store.manifest.archive


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

    def identity(self) -> Identity:
        """Return what a fit of this job is made of.

        Raises:
            ValueError: If a checkpoint that it names is damaged or missing.
            OSError: If the file of weights cannot be read.
        """
        return Identity(
            recipe_digest=self.store.recipe_digest,
            preset=self.preset.name,
            seed=self.seed,
            pretrained=self.pretrained,
            pretrained_file=hashlib.sha256(self.weights.read_bytes()).hexdigest() if self.weights else "",
            start=verify_checkpoint(self.start).sha256 if self.start else "",
            teacher=verify_checkpoint(self.teacher).sha256 if self.teacher else "",
            stream=self.stream,
            focal_gamma=self.task.focal_gamma,
            balance=self.task.balance,
        )

    def check(self, processes: int = 1) -> None:
        """Raise ValueError where the fit could not be made or judged, before anything is computed for it.

        Args:
            processes: That fit together.
        """
        least: dict[SplitName, int] = {"train": processes, "validation": processes, "test": 1}
        for split, images in least.items():
            if (found := len(self.store.indices(split))) < images:
                among = f" for {processes} processes" if processes > 1 else ""
                raise ValueError(
                    f"{self.store.folder}: {found} {split} images are too few{among} to fit to and to judge"
                )
        if self.batch_size % processes:
            raise ValueError(f"a batch of {self.batch_size} images cannot be shared by {processes} processes")
        labels = self.store.labels("validation")
        metric = self.task.primary_metric
        # Answers that are all alike have every metric that is defined on these labels.
        alike = score(self.task, np.zeros((len(labels), self.task.output_count), dtype=np.float32), labels)
        if np.isnan(alike[metric]) and not self.preset.step_capped:
            absent = [name for index, name in enumerate(self.task.classes) if not (labels == index).any()]
            of_what = f" of {', '.join(absent)}" if absent else ""
            raise ValueError(f"{self.store.folder}: no validation image{of_what}, so no {metric} to choose an epoch by")
        if self.start:
            card = verify_checkpoint(self.start)
            self.refuse_other_split(self.start, card)
            self._expect_alike(self.start, card)
        if self.teacher:
            card = verify_checkpoint(self.teacher)
            self.refuse_other_split(self.teacher, card)
            if card.task != self.task.name:
                raise ValueError(f"teacher {self.teacher} is of task {card.task!r}, not {self.task.name!r}")

    def refuse_other_split(self, path: Path, card: Card) -> None:
        """Raise ValueError if the network *path* may have been fitted to test images of this job.

        So it may where both come of one archive that was imported twice: another seed parts it in other splits.
        """
        if fitted_to_another_split(card, self.store):
            sky = self.store.sky
            raise ValueError(f"{path} was fitted to another split of {sky}: it may know the test images of this one")

    def _expect_alike(self, path: Path, card: Card) -> None:
        """Raise ValueError unless the backbone of *path* has the shapes of this network's, whatever its input size."""
        family, channels = find_architecture(card.architecture).name, find_task(card.task).image_shape[0]
        if (family, channels) != (self.architecture.name, self.task.image_shape[0]):
            said = f"{path} ({card.task}/{card.architecture}, {channels} bands)"
            raise ValueError(f"{said} is no start for {self.name}, of {self.task.image_shape[0]} bands")

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
