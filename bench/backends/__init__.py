"""The backends: each module here but `base` defines one `BACKEND` and is found by its presence."""

from __future__ import annotations

import importlib
import pkgutil

from bench.backends.base import Backend


def known_backends() -> dict[str, Backend]:
    """Return every backend by name, in alphabetical order; no runtime is imported."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")
    backends: list[Backend] = [importlib.import_module(f"{__name__}.{name}").BACKEND for name in names]
    return {backend.name: backend for backend in sorted(backends, key=lambda backend: backend.name)}
