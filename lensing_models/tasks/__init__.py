"""The tasks: each module here defines one `TASK` and is found by its presence alone."""

from __future__ import annotations

import importlib
import pkgutil

from lensing_models.specs import TaskSpec


def known_tasks() -> dict[str, TaskSpec]:
    """Return every task by name, in alphabetical order."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {module.TASK.name: module.TASK for module in modules}
