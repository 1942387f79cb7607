"""Whether a fit may write to the path of a checkpoint: what lies there, what was begun, and who is at it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lensing_models.checkpoint import Card, read_card, verify_checkpoint
from lensing_models.job import LAST, Job

LOCK = ".lock"
#: Seconds after which a folder is another process's, which may only have looked (`is_held`).
GRACE_S = 0.5
#: Begins the reason why an intact checkpoint is not that of a job.
OTHER = "another "
#: The one reason for which a checkpoint is replaced unasked: the fit is the same, and goes further.
CUT = "a time budget cut it short"


def fit_folder(path: Path) -> Path:
    """Return where the state, the logs and the learning curve of the fit of the checkpoint *path* lie."""
    return path.with_suffix(".fit")


def kept_card(path: Path, job: Job, *, whole: bool = False) -> tuple[Card | None, str]:
    """Return the card of a checkpoint that need not be fitted again, or None and the reason why.

    Args:
        path: Where the checkpoint would lie.
        job: What it must have been fitted as: data, preset, seed, first weights, loss, teacher, stream.
        whole: Whether a fit that a time budget cut short is not enough.
    """
    if not path.exists():
        return None, "not there yet"
    try:
        card = verify_checkpoint(path)
    except ValueError as error:
        return None, str(error)
    wanted = dataclasses.asdict(job.identity())
    if differing := [name for name, value in wanted.items() if getattr(card, name) != value]:
        return None, f"{OTHER}{' and '.join(differing)}"
    if whole and not card.converged and not job.preset.step_capped:
        return None, CUT
    return card, ""


def refuse_to_replace(path: Path, why: str, *, resume: bool) -> None:
    """Raise ValueError where a fit would cost somebody's work that *path*, or the fit beside it, holds.

    Args:
        path: Where the checkpoint would lie; it is not kept.
        why: The reason, as `kept_card` gives it.
        resume: Whether an unfinished fit is to be gone on with.
    """
    folder = fit_folder(path)
    if (folder / LAST).exists():
        if not resume:
            raise ValueError(f"{folder} holds a fit that was not finished: --resume goes on, --refit begins it anew")
        return  # When it was begun, it was asked whether to replace what is there.
    if why.startswith(OTHER):
        raise ValueError(f"{path} is there, of {why}: --refit replaces it, or choose another --out")
    if path.exists() and why != CUT:
        raise ValueError(f"only --refit replaces a checkpoint that cannot be used: {why}")


def read_stamp(path: Path) -> tuple[str, str] | None:
    """Return what tells one fit of the checkpoint *path* from the next; None without a readable card."""
    try:
        card = read_card(path)
    except ValueError:
        return None
    return card.sha256, card.recorded_at


def is_held(folder: Path) -> bool:
    """Return whether another process is fitting into *folder*."""
    if not folder.exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def hold(folder: Path, *, wait: bool) -> Iterator[None]:
    """Keep other processes from fitting into *folder* meanwhile; one that is at it already is waited for.

    Raises:
        ValueError: If one is, and is not to be waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=GRACE_S)
    except Timeout as error:
        if not wait:
            raise ValueError(f"{folder}: another process is fitting into it; choose another --out") from error
        print(f"{folder}: another process is fitting into it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
