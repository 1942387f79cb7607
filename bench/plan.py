"""Expand and check the sweep: names in, the list of cases out. Nothing here imports a runtime."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.backends.base import Backend
from bench.records import DEFAULT, Case, join_variants
from bench.scenario import parse_scenarios
from lensing_models.registry import select_pairs, split_names
from lensing_models.specs import ArchitectureSpec, TaskSpec

#: The 16-bit precision that a device's hardware is made for.
HALF_PRECISION = {"cpu": "bf16", "cuda": "fp16"}
BATCH_SIZES = (1, 8, 32, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCase:
    """A case, and why it will be skipped; empty if it will be measured."""

    case: Case
    skip_reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The whole plan: cases ordered by task, architecture, backend, precision, variant and batch size.

    Attributes:
        scenarios: Kinds of arrivals that each measured case is driven with where they suit it.
    """

    pairs: tuple[tuple[TaskSpec, ArchitectureSpec], ...]
    cases: tuple[PlannedCase, ...]
    scenarios: tuple[str, ...] = ()


def expand_sweep(
    *,
    models: str,
    tasks: str,
    backends: str,
    precisions: str | None,
    batch_sizes: str,
    device: str,
    threads: int,
    known: Mapping[str, Backend],
    scenarios: str = "",
) -> Sweep:
    """Return every cell that the comma lists name.

    Args:
        models: Architectures, or ``all``.
        tasks: Tasks, or ``all``: with ``all`` on either side, the published pairs.
        backends: Backends, or ``all``.
        precisions: Precisions, ``all`` (each backend's own), or None: fp32 and the device's
            half precision.
        batch_sizes: Positive whole numbers, or ``all``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for every runtime.
        known: The backends by name.
        scenarios: Kinds of arrivals, ``all``, or nothing.

    Raises:
        LookupError: If a name is unknown.
        ValueError: If the selection is empty or a batch size is no positive whole number.
    """
    pairs = select_pairs(models, tasks)
    names = split_names("backend", backends, known) or list(known)
    sizes = parse_batch_sizes(batch_sizes)
    cells = [
        Case(
            task=task.name,
            architecture=architecture.name,
            backend=name,
            precision=precision,
            batch_size=sizes[0],
            device=device,
            threads=threads,
            variant=architecture.variant,
        )
        for task, architecture in pairs
        for name in names
        for precision in select_precisions(precisions, known[name], device, known)
    ]
    cases = [
        replace(cell, variant=join_variants(cell.variant, variant), batch_size=size)
        for cell in cells
        for variant in variants_of(cell, known[cell.backend])
        for size in sizes
    ]
    return Sweep(
        pairs=tuple(pairs),
        cases=tuple(PlannedCase(case=case, skip_reason=why_not(case, known)) for case in cases),
        scenarios=tuple(parse_scenarios(scenarios)),
    )


def why_not(case: Case, known: Mapping[str, Backend]) -> str:
    """Return why *case* cannot run here, or an empty string."""
    backend = known[case.backend]
    return backend.probe(case.device).reason or backend.refuse(case) or ""


def variants_of(case: Case, backend: Backend) -> tuple[str, ...]:
    """Return every runtime variant of the cell of *case*, the plain one first.

    A backend that has more than the plain one says so in a method ``variants_of(case)``.
    """
    own = getattr(backend, "variants_of", None)
    names: tuple[str, ...] = own(case) if own else (DEFAULT,)
    return names


def select_precisions(text: str | None, backend: Backend, device: str, known: Mapping[str, Backend]) -> list[str]:
    """Return the precisions of *backend* on *device* that *text* asks for.

    A named precision that a backend lacks is kept: its row says why it is refused.
    """
    default = ["fp32", HALF_PRECISION[device]]
    if text is None:
        return default
    names = {name for row in known.values() for table in row.precisions.values() for name in table}
    return split_names("precision", text, sorted(names)) or list(backend.precisions.get(device, default))


def parse_batch_sizes(text: str) -> list[int]:
    """Return the batch sizes of a comma list, each once, in the order given."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if "all" in parts:
        return list(BATCH_SIZES)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"batch sizes {text!r}: give positive whole numbers, e.g. 1,32, or all")
    return list(dict.fromkeys(int(part) for part in parts))


def resolve_threads(threads: int | None) -> int:
    """Return the thread count: all cores this process may use, unless *threads* says otherwise."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"--threads {threads}: give a positive whole number")
    return threads


def split_sets(workers: Sequence[str], most: int) -> list[list[str]]:
    """Return *workers*, those of one network, cut in order into as few even sets as *most* allows."""
    count = -(-len(workers) // most)
    size, longer = divmod(len(workers), max(count, 1))
    starts = [index * size + min(index, longer) for index in range(count + 1)]
    return [list(workers[start:stop]) for start, stop in itertools.pairwise(starts)]
