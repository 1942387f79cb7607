"""Select things by name: comma lists, ``all``, and a did-you-mean for a typing error."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeVar

from lensing_models.architectures import ARCHITECTURES
from lensing_models.specs import ArchitectureSpec, TaskSpec
from lensing_models.tasks import known_tasks

Row = TypeVar("Row")


def known_architectures() -> dict[str, ArchitectureSpec]:
    """Return every architecture by its label, in the order of its rows."""
    return {row.label: row for row in ARCHITECTURES}


def explain_unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return one line: what is unknown, what is known, and the nearest name if there is one."""
    names = sorted(known)
    line = f"unknown {what} {name!r}; known: {', '.join(names)}."
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"{line} Did you mean {near[0]!r}?" if near else line


def split_names(what: str, text: str, known: Iterable[str]) -> list[str] | None:
    """Return the names of the comma list *text* in the order given, or None for ``all``.

    Raises:
        LookupError: If a name is not in *known*.
        ValueError: If *text* names nothing.
    """
    known = list(known)
    names = _parts(what, text, known)
    for name in names:
        if name not in known and name != "all":
            raise LookupError(explain_unknown(what, name, known))
    return None if "all" in names else list(dict.fromkeys(names))


def _parts(what: str, text: str, known: Iterable[str]) -> list[str]:
    if names := [part.strip() for part in text.split(",") if part.strip()]:
        return names
    raise ValueError(f"no {what} named; known: {', '.join(sorted(known))}, or all")


def find_task(name: str) -> TaskSpec:
    """Return the task called *name*; raise LookupError with the known ones otherwise."""
    return _find("task", name, known_tasks())


def find_architecture(name: str) -> ArchitectureSpec:
    """Return the architecture called *name*; raise LookupError with the known ones otherwise."""
    return _find("model", name, known_architectures())


def _find(what: str, name: str, rows: dict[str, Row]) -> Row:
    if name not in rows:
        raise LookupError(explain_unknown(what, name, rows))
    return rows[name]


def select_pairs(models: str, tasks: str) -> list[tuple[TaskSpec, ArchitectureSpec]]:
    """Return the pairs of task and architecture that two comma lists name.

    ``all`` on either side means the published pairs, and those of its family for a variant that is
    named; a pair with both sides named always counts.

    Args:
        models: Comma list of architectures, or ``all``; ``TASK/`` before one means it on that task alone.
        tasks: Comma list of tasks, or ``all``; there is no pair of another task, whatever *models* says.

    Returns:
        Pairs ordered by task, then by architecture.

    Raises:
        LookupError: If a name is unknown.
        ValueError: If the selection is empty.
    """
    task_names = split_names("task", tasks, known_tasks())
    entries = [_entry(part) for part in _parts("model", models, known_architectures())]
    pairs = [
        (task, architecture)
        for name, task in known_tasks().items()
        if task_names is None or name in task_names
        for architecture in ARCHITECTURES
        if any(_means(entry, name, architecture, named=task_names is not None) for entry in entries)
    ]
    if not pairs:
        raise ValueError(f"empty selection: no published pair in --models {models} --tasks {tasks}; name both sides")
    return pairs


def _entry(text: str) -> tuple[str, str]:
    """Return task, empty for any, and label or ``all`` of one part of ``--models``; LookupError for another."""
    task, _, label = text.rpartition("/")
    if task:
        find_task(task)
    if label != "all":
        find_architecture(label)
    return task, label


def _means(entry: tuple[str, str], task: str, architecture: ArchitectureSpec, *, named: bool) -> bool:
    """Say whether *entry* means this pair; *named*: the tasks have been."""
    of_task, label = entry
    if of_task not in ("", task):
        return False
    if label == "all":
        return task in architecture.published
    return label == architecture.label and (named or bool(of_task) or task in _published(architecture))


def _published(architecture: ArchitectureSpec) -> Collection[str]:
    """Return the tasks that a network is published on; for a variant, those of its family."""
    if architecture.variant == "default":
        return architecture.published
    return find_architecture(architecture.name).published
