"""Find the data set of a task: where the user says, or the default one, simulated if it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lensing_models.cores import usable_cores
from lensing_models.preset import Preset
from lensing_models.specs import TaskSpec

if TYPE_CHECKING:
    from lensing_models.data.store import Store

#: Where the default data sets lie. Safe to delete.
CACHE = Path("results/cache/data")
#: Images for which starting a process for each core pays.
WORTH_WORKERS = 4000
#: Each takes half a GiB.
MOST_WORKERS = 8


def find_store(task: TaskSpec, data: Path | None, preset: Preset) -> Store:
    """Return the data set of *task*.

    Args:
        task: The task.
        data: A store, or a folder of one store a task; None for the default one in the cache,
            which is simulated there, with progress on stderr, if it is missing.
        preset: Size of the default one.

    Raises:
        ValueError: If *data* has none, or one of another task.
    """
    if data is not None:
        return open_task_store(data, task.name)
    from lensing_models.data.simulate import ensure_dataset
    from lensing_models.progress import ProgressLine

    split = preset.split_for(task.name)
    total = split.train + split.validation + split.test
    workers = min(usable_cores(), MOST_WORKERS) if total >= WORTH_WORKERS else 1
    with ProgressLine(f"simulate {task.name}", total, every=0.25) as line:
        store = ensure_dataset(task, preset, CACHE, workers=workers, progress=lambda done, total: line.reach(done))
    refuse_other_classes(store, task.classes)
    return store


def choose_tasks(tasks: str | None, models: str, data: Path | None) -> str:
    """Return *tasks*; where nobody chose, that of which *data* has its only data set, or ``all``.

    Args:
        tasks: Comma list of tasks, ``all``, or None.
        models: Comma list of networks; one that names its task has chosen.
        data: A store, or a folder of one store a task; None for the default ones, of all tasks.

    Raises:
        ValueError: If the one store is damaged.
    """
    if tasks is not None:
        return tasks
    if data is None or "/" in models:
        return "all"
    from lensing_models.data.store import open_store
    from lensing_models.tasks import known_tasks

    if (data / "manifest.json").is_file():
        return open_store(data).task
    found = [name for name in known_tasks() if (data / name / "manifest.json").is_file()]
    return found[0] if len(found) == 1 else "all"


def open_task_store(folder: Path, task_name: str) -> Store:
    """Return the store of a task from *folder*: the store itself, or a folder of one store a task.

    Raises:
        ValueError: If there is none, or it holds another task.
    """
    from lensing_models.data.store import open_store
    from lensing_models.registry import find_task

    candidates = [path for path in (folder, folder / task_name) if (path / "manifest.json").is_file()]
    if not candidates:
        remedy = f"make one: python -m lensing_models.data simulate --task {task_name} (see --help)"
        raise ValueError(f"no data set for {task_name}, no manifest.json in {folder} or {folder / task_name}; {remedy}")
    store = open_store(candidates[0])
    if store.task != task_name:
        raise ValueError(f"{candidates[0]} holds {store.task!r}, not {task_name!r}; name a data set of {task_name}")
    refuse_other_classes(store, find_task(task_name).classes)
    return store


def refuse_other_classes(store: Store, classes: Sequence[str]) -> None:
    """Raise ValueError if a label of *store* is none of *classes*, or is another one's: the task has changed since."""
    if not classes:
        return
    found = store.catalog[["label", "class"]].drop_duplicates()
    for label, name in zip(found["label"], found["class"], strict=True):
        if not 0 <= label < len(classes) or (name in classes and classes[label] != name):
            raise ValueError(
                f"{store.folder}: label {label} is {name!r}, but the classes of {store.task} are {', '.join(classes)}; "
                "make the data set again"
            )
