"""The backends: each module here but `base` defines one `BACKEND` and is found by its presence.

Backends from elsewhere: name their modules in the environment variable `PLUGINS`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil

from bench.backends.base import Backend

#: Comma list of importable modules, each with a `BACKEND`.
PLUGINS = "LENSING_BENCH_BACKENDS"


def known_backends() -> dict[str, Backend]:
    """Return every backend by name, in alphabetical order; no runtime is imported.

    Raises:
        LookupError: If a module of `PLUGINS` cannot be imported or two backends share a name.
    """
    modules = [f"{__name__}.{info.name}" for info in pkgutil.iter_modules(__path__) if info.name != "base"]
    modules += [name.strip() for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    backends: dict[str, Backend] = {}
    for name in modules:
        try:
            backend: Backend = importlib.import_module(name).BACKEND
        except (ImportError, AttributeError) as error:
            raise LookupError(f"{PLUGINS}: no backend in module {name!r}: {error}") from error
        if backend.name in backends:
            raise LookupError(f"{PLUGINS}: module {name!r} brings a second backend {backend.name!r}")
        backends[backend.name] = backend
    return dict(sorted(backends.items()))
