"""See to it that every planned network has its data and its checkpoint; fit what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.timetable import Timetable
from lensing_models.checkpoint import Card, checkpoint_path, verify_checkpoint
from lensing_models.checkpoint_index import fetch_weights
from lensing_models.data.find import find_store
from lensing_models.preset import Preset
from lensing_models.specs import ArchitectureSpec, TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store

#: Derived files: data sets, quickly fitted networks, exported graphs. Safe to delete.
CACHE = Path("results/cache")
#: Checkpoints that travel with the project.
PUBLISHED = Path("results/checkpoints")

Pair = tuple[TaskSpec, ArchitectureSpec]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provision:
    """What the sweep runs on.

    Attributes:
        stores: Data sets by task.
        checkpoints: Checkpoints by (task, label of the network); a pair whose fit failed is missing.
    """

    stores: Mapping[str, Store]
    checkpoints: Mapping[tuple[str, str], tuple[Path, Card]]


def provide(
    pairs: Sequence[Pair],
    *,
    preset: Preset,
    data: Path | None,
    checkpoints: Path | None,
    device: str,
    threads: int,
    timetable: Timetable,
) -> Provision:
    """Return data and checkpoints for *pairs*, simulating and fitting what is missing.

    Args:
        pairs: Tasks and architectures of the sweep.
        preset: Sizes of data and fit.
        data: A store, or a folder with one store a task; None for the embedded default data.
        checkpoints: Folder of checkpoints, fitted into where one is missing; None for the
            published ones, and the cache for the rest.
        device: Where to fit.
        threads: CPU threads of the fit.
        timetable: Is told of the time that data and fits take.

    Raises:
        ValueError: If given data or a given checkpoint is damaged or is for another task.
    """
    tasks = {task.name: task for task, _ in pairs}
    with timetable.spend("data"):
        stores = {name: find_store(task, data, preset) for name, task in tasks.items()}
    folder = checkpoints or CACHE / "checkpoints" / preset.name
    given = [checkpoints] if checkpoints else [PUBLISHED]
    found = {pair_key(pair): find_checkpoint(pair, given) for pair in pairs}
    if checkpoints is None:
        cached = {pair_key(pair): find_cached(pair, folder, stores[pair[0].name]) for pair in pairs}
        found = {key: found[key] or cached[key] for key in found}
    missing = [pair for pair in pairs if found[pair_key(pair)] is None]
    if missing:
        with timetable.spend("fit"):
            # What the cache has and cannot be used is replaced; a folder that was named is not.
            refit = checkpoints is None
            fit_missing(missing, preset=preset, data=data, folder=folder, device=device, threads=threads, refit=refit)
        for pair in missing:
            # What the cache had, and was refused, may still lie there if the fit failed.
            store = stores[pair[0].name]
            found[pair_key(pair)] = find_checkpoint(pair, [folder]) if checkpoints else find_cached(pair, folder, store)
    return Provision(stores=stores, checkpoints={key: entry for key, entry in found.items() if entry is not None})


def pair_key(pair: Pair) -> tuple[str, str]:
    """Return the names of a pair: of the task, and the label of the network."""
    return pair[0].name, pair[1].label


def find_checkpoint(pair: Pair, folders: Sequence[Path]) -> tuple[Path, Card] | None:
    """Return the checkpoint of *pair* in the first folder that has it, or whose index says where it is.

    Raises:
        ValueError: If it is damaged; a file that was given is never replaced.
        OSError: If it could not be fetched.
    """
    for folder in folders:
        path = checkpoint_path(folder, *pair_key(pair))
        if path.exists() or fetch_weights(path):
            return path, verify_checkpoint(path)
    return None


def find_cached(pair: Pair, folder: Path, store: Store) -> tuple[Path, Card] | None:
    """Return the cached checkpoint of *pair* if it is whole and was fitted to *store*; else None."""
    try:
        found = find_checkpoint(pair, [folder])
    except ValueError as error:
        print(f"{error}; fitted again", file=sys.stderr)
        return None
    return found if found and found[1].recipe_digest == store.recipe_digest else None


def fit_missing(
    pairs: Sequence[Pair],
    *,
    preset: Preset,
    data: Path | None,
    folder: Path,
    device: str,
    threads: int,
    refit: bool,
) -> None:
    """Fit each of *pairs* into *folder* in a process of its own, which shows progress and errors on stderr.

    A fit that fails leaves no checkpoint, and the others alone; the cases of that pair become failed records. One that
    was interrupted is gone on with, unless *refit* asks to begin anew and to replace what is there.
    """
    for task, architecture in pairs:
        command = [sys.executable, "-m", "lensing_models.train"]
        command += ["--models", architecture.label, "--tasks", task.name, "--preset", preset.name]
        command += ["--out", str(folder), "--device", device, "--threads", str(threads)]
        command += ["--data", str(data)] if data else []
        command += ["--refit" if refit else "--resume"]
        subprocess.run(command, stdout=sys.stderr, check=False)
