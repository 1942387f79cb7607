"""The batches that timed calls take in turn: consecutive test images, wrapped round where they run out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import Case

if TYPE_CHECKING:
    import torch

#: Batches in rotation.
INPUT_BUFFERS = 8


@dataclass(frozen=True)
class Rotation:
    """The batches of *case*, of *images* (N, C, H, W) float32 on the host."""

    images: torch.Tensor
    case: Case

    def rows(self) -> list[torch.Tensor]:
        """Return which images each batch holds, (B,) int64 each."""
        import torch

        batch = self.case.batch_size
        return [(torch.arange(batch) + turn * batch) % len(self.images) for turn in range(INPUT_BUFFERS)]

    def buffer(self, turn: int) -> torch.Tensor:
        """Return the batch *turn* (B, C, H, W) on the device of the case."""
        return self.images[self.rows()[turn]].contiguous().to(self.case.device)

    def buffers(self) -> list[torch.Tensor]:
        """Return every batch on the device of the case."""
        return [self.buffer(turn) for turn in range(INPUT_BUFFERS)]
