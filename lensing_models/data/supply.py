"""Where the images of a fit come from: the store, the memory of the device, or the simulator without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lensing_models.data.preprocess import scale_to_unit, stretch
from lensing_models.registry import find_task

if TYPE_CHECKING:
    from lensing_models.data.manifest import SplitName
    from lensing_models.data.store import Store
    from lensing_models.specs import LabelArray

UPLOADED_TOGETHER = 1024  # images; what the host holds of them


class Supply(Protocol):
    """Gives the images of one split by their numbers in it."""

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, LabelArray]:
        """Return images (B, C, H, W) float32 in [0, 1] and labels (B,) of these *numbers* (B,)."""


class StoredImages:
    """The images of a split, read through the memory map; what `scale_to_unit` makes of them."""

    def __init__(self, store: Store, split: SplitName) -> None:
        self._store, self._split = store, split
        self._rows, self._labels = store.indices(split), store.labels(split)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, LabelArray]:
        """Return images and labels, on the host; ValueError, naming the data set, if one is not finite."""
        try:
            return scale_to_unit(self._store.counts(self._rows[numbers])), self._labels[numbers]
        except ValueError as error:
            some = ", ".join(map(str, numbers[:3]))
            raise ValueError(f"{self._store.folder}, {self._split} images {some}, ...: {error}") from error


class ResidentImages:
    """The images of a split in the memory of a device, as they are stored; the same values as from the host.

    Args:
        store: Holds them.
        split: Which of them.
        device: Where to.

    Raises:
        ValueError: If an image is not finite.
    """

    def __init__(self, store: Store, split: SplitName, device: str) -> None:
        rows, manifest = store.indices(split), store.manifest
        self._labels, self._scale, self._offset = store.labels(split), manifest.scale, manifest.offset
        self._is_unsigned = manifest.dtype == "uint16"
        # torch computes little with uint16: the bits lie as int16.
        kept = torch.int16 if self._is_unsigned else getattr(torch, manifest.dtype)
        self._images = torch.empty((len(rows), *manifest.recipe.image_shape), dtype=kept, device=device)
        for start in range(0, len(rows), UPLOADED_TOGETHER):
            stored = store.stored(rows[start : start + UPLOADED_TOGETHER])
            if not np.isfinite(stored).all():
                raise ValueError(f"{store.folder}: an image of the {split} split has a value that is not finite")
            bits = stored.view(np.int16) if self._is_unsigned else stored
            self._images[start : start + len(bits)] = torch.from_numpy(bits)

    def __deepcopy__(self, memo: object) -> ResidentImages:
        """Return the same: nothing changes the images, and Lightning's average copies all that a fit has."""
        return self

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, LabelArray]:
        """Return images on the device, and labels."""
        images = self._images[torch.from_numpy(numbers).to(self._images.device)]
        counts = ((images.int() & 0xFFFF) if self._is_unsigned else images).float()
        if (self._scale, self._offset) != (1.0, 0.0):
            counts = counts.mul_(self._scale).add_(self._offset)
        return stretch(counts), self._labels[numbers]


class FreshImages:
    """The training split without end: behind the last stored image it goes on with new ones.

    An image depends on its number alone, so a fit that is resumed sees the same; no number stands
    for an image of another split.

    Args:
        store: Simulated data.

    Raises:
        ValueError: If the store was not simulated, or by another version of the simulator.
    """

    def __init__(self, store: Store) -> None:
        from lensing_models.data.simulate import SOURCES, make_recipe
        from lensing_models.preset import Split

        recipe = store.manifest.recipe
        if recipe.sky not in SOURCES:
            raise ValueError(f"{store.folder} was not simulated ({recipe.sky}): there is no stream of new images")
        self._stored, self._task, self._seed = StoredImages(store, "train"), find_task(store.task), recipe.seed
        again = make_recipe(self._task, Split(**recipe.sizes), sky=recipe.sky, seed=recipe.seed)
        if again.digest != recipe.digest:
            raise ValueError(f"{store.folder} was made by another simulator or for another grid; make it again")
        self._source_name = recipe.sky

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, LabelArray]:
        """Return images and labels, on the host, made on one thread where they are not stored."""
        from lensing_models.data.simulate import SOURCES, simulate_images

        if (numbers < len(self._stored)).all():
            return self._stored.take(numbers)
        source, indices = SOURCES[self._source_name], [int(number) for number in numbers]
        counts, rows = simulate_images(self._task, source, "train", indices, seed=self._seed)
        return scale_to_unit(counts.astype(np.float32)), np.array([row["label"] for row in rows])
