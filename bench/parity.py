"""Outputs of a session against the reference: eager fp32, NCHW, TF32 off, same device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.records import Case, Parity
from lensing_models.precision import set_tf32

if TYPE_CHECKING:
    import torch

    from bench.backends.base import Session
    from lensing_models.network import LensNetwork

#: max |difference| / rms of the reference that an fp32 backend may reach.
TOLERANCE = 1e-4
#: max |difference| between a session that is timed and the one that was scored, at any precision, over the spread of
#: the reference's outputs: two bf16 sessions round differently, by a few hundredths on the deepest network.
AGREEMENT = 0.1
#: Fewer images have no spread to speak of; their rms stands for it.
FEWEST_IMAGES = 8
#: Test images that are compared.
PARITY_IMAGES = 256
#: Batch of the reference; its outputs do not depend on it beyond rounding.
REFERENCE_BATCH = 8

Outputs = NDArray[np.float32]


def compute_reference(network: LensNetwork, images: torch.Tensor, device: str) -> Outputs:
    """Return the reference outputs (N, K) of *images* (N, C, H, W) float32, on *device*."""
    import torch

    # Not through a backend: the reference must not share a mistake with what it judges.
    set_tf32(device, allowed=False)
    ready = network.float().to(memory_format=torch.contiguous_format).to(device).eval()
    with torch.inference_mode():
        parts = [ready(part.to(device)).cpu() for part in torch.split(images, REFERENCE_BATCH)]
    return torch.cat(parts).numpy()


def run_through(session: Session, images: torch.Tensor, case: Case, slot: int = 0) -> Outputs:
    """Return the outputs (N, K) of *session* for all *images*, batch by batch, each on *slot*.

    A ragged last batch is padded with its own last image, whose extra outputs are dropped.

    Raises:
        RuntimeError: If the session returns another shape than (B, K) float32.
    """
    parts = []
    for batch, count in padded_batches(images, case.batch_size):
        outputs = session.infer(batch.to(case.device), slot=slot)
        session.synchronize()
        if outputs.dim() != 2 or outputs.shape[0] != case.batch_size or str(outputs.dtype) != "torch.float32":
            raise RuntimeError(
                f"outputs are {tuple(outputs.shape)} {outputs.dtype}, not ({case.batch_size}, K) float32"
            )
        # Copied: the session may write into the same buffer at its next call.
        parts.append(outputs[:count].cpu().numpy().copy())
    return np.concatenate(parts)


def padded_batches(images: torch.Tensor, batch_size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield batches of exactly *batch_size* images and how many of each are real."""
    import torch

    for batch in torch.split(images, batch_size):
        missing = batch_size - len(batch)
        full = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
        yield full.contiguous(), len(batch)


def compare(outputs: Outputs, reference: Outputs, precision: str) -> Parity:
    """Return how far *outputs* (N, K) are from *reference* (N, K).

    Reduced precisions have no tolerance here: their drift is judged by quality, and only
    non-finite or misshapen outputs fail.
    """
    tolerance = TOLERANCE if precision == "fp32" else None
    if outputs.shape != reference.shape or not np.isfinite(outputs).all():
        return Parity(images=len(reference), error=float("nan"), tolerance=tolerance, passed=False)
    difference = np.abs(outputs.astype(np.float64) - reference).max()
    error = float(difference / np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    return Parity(
        images=len(reference), error=error, tolerance=tolerance, passed=tolerance is None or error <= tolerance
    )


def hold_against(reference: Path | None, outputs: Outputs, precision: str) -> tuple[Parity | None, str]:
    """Return the parity of the first test images' *outputs* with the file *reference*, and why it is not passed.

    None and nothing where there is no reference.
    """
    if reference is None:
        return None, ""
    known = np.load(reference)[: len(outputs)]
    compared = outputs[: len(known)]
    parity = compare(compared, known, precision)
    return parity, "" if parity.passed else explain_failure(compared, parity)


def contradict(scored: Path, outputs: Outputs, reference: Path | None) -> str:
    """Return how *outputs* contradict those of the session that was scored, in the file *scored*; empty without one."""
    if reference is None or not scored.exists():
        return ""
    known, before = np.load(reference)[:PARITY_IMAGES], np.load(scored)[:PARITY_IMAGES]
    return explain_disagreement(outputs[: len(known)], before, known)


def worse_of(first: Parity | None, second: Parity | None) -> Parity | None:
    """Return one parity for two sessions of a worker: the images of the longer comparison, the larger error."""
    known = [parity for parity in (first, second) if parity]
    if not known:
        return None
    return Parity(
        images=max(parity.images for parity in known),
        # NaN, of outputs without a number, is the largest error there is.
        error=float(np.max([parity.error for parity in known])),
        tolerance=known[0].tolerance,
        passed=all(parity.passed for parity in known),
    )


def explain_disagreement(outputs: Outputs, scored: Outputs, reference: Outputs) -> str:
    """Return how far *outputs* (M, K) are from the first M that were *scored* (N, K), in words; empty if near enough.

    Allowed is `AGREEMENT` of the spread of the outputs, the rms about the mean of each column, for that is what
    answers are told apart by: logarithms of masses lie around -1.4 and differ by a few tenths. Where the scored
    outputs are further than half of that from the *reference* (N, K), twice their distance is allowed, and always
    what two fp32 sessions may differ by: on a network that is hardly fitted bf16 moves the outputs by as much as they
    spread.
    """
    same = scored[: len(outputs)]
    if outputs.shape != same.shape:
        return f"outputs have the shape {outputs.shape}, those of the scored session {same.shape}"
    if not np.isfinite(outputs).all():
        return explain_not_finite(outputs)
    known = reference.astype(np.float64)
    size = float(np.sqrt(np.mean(np.square(known))))
    spread = float(np.sqrt(np.mean(np.square(known - known.mean(axis=0))))) if len(known) >= FEWEST_IMAGES else size
    drifted = float(np.abs(scored - known).max())
    allowed = max(AGREEMENT * spread, 2 * drifted, TOLERANCE * size)
    difference = float(np.abs(outputs.astype(np.float64) - same).max())
    if difference <= allowed:
        return ""
    return f"outputs differ from those of the scored session by up to {difference:.2g}; allowed are {allowed:.2g}"


def explain_failure(outputs: Outputs, parity: Parity) -> str:
    """Return in words why *parity* was not passed."""
    if not np.isfinite(outputs).all():
        return explain_not_finite(outputs)
    if np.isnan(parity.error):
        return f"outputs have the shape {outputs.shape}, not that of the reference"
    return (
        f"outputs differ from eager fp32 by {parity.error:.2g} of their rms over {parity.images} test images; "
        f"allowed are {parity.tolerance:.1g}"
    )


def explain_not_finite(outputs: Outputs) -> str:
    """Return how many of *outputs* are NaN or infinite, in words."""
    return f"{np.count_nonzero(~np.isfinite(outputs))} of {outputs.size} outputs are not finite"
