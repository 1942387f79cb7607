"""Expand and check the sweep: names in, the list of cases out. Nothing here imports a runtime."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.backends.base import Backend
from bench.knob import TUNED, knobs_of
from bench.records import DEFAULT, GRAPH, Case, join_variants
from bench.scenario import parse_scenarios
from lensing_models.cores import usable_cores
from lensing_models.registry import known_architectures, select_pairs, split_names
from lensing_models.specs import ArchitectureSpec, TaskSpec

#: The 16-bit precision that a device's hardware is made for.
HALF_PRECISION = {"cpu": "bf16", "cuda": "fp16"}
BATCH_SIZES = (1, 8, 32, 128)
#: Runtime variants that are planned only where they are named or all are asked for.
ON_REQUEST = frozenset({"optimized", TUNED})


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
    backends: str | None,
    precisions: str | None,
    batch_sizes: str,
    device: str,
    threads: int,
    known: Mapping[str, Backend],
    scenarios: str = "",
    variants: str | None = None,
    tune: bool = False,
) -> Sweep:
    """Return every cell that the comma lists name.

    Args:
        models: Architectures, or ``all``.
        tasks: Tasks, or ``all``: with ``all`` on either side, the published pairs.
        backends: Backends, ``all``, or None: those that do not compile each network for minutes.
        precisions: Precisions, ``all`` (each backend's own), or None: fp32 and the device's
            half precision.
        batch_sizes: Positive whole numbers, or ``all``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads for every runtime.
        known: The backends by name.
        scenarios: Kinds of arrivals, ``all``, or nothing.
        variants: Runtime variants, ``all`` (each cell's own), or None: those that are not `ON_REQUEST`.
        tune: Whether each of them stands beside its tuned one, where it has that.

    Raises:
        LookupError: If a name is unknown.
        ValueError: If the selection is empty or a batch size is no positive whole number.
    """
    pairs = select_pairs(models, tasks)
    names = select_backends(backends, known)
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
        for variant in with_tuned(select_variants(variants, cell, known), cell, known, tune=tune)
        for size in sizes
    ]
    return Sweep(
        pairs=tuple(pairs),
        cases=tuple(PlannedCase(case=case, skip_reason=why_not(case, known)) for case in cases),
        scenarios=tuple(parse_scenarios(scenarios)),
    )


def select_backends(text: str | None, known: Mapping[str, Backend]) -> list[str]:
    """Return the backends that *text* asks for; None for all whose `compiles_long` is not true."""
    if text is None:
        return [name for name, backend in known.items() if not getattr(backend, "compiles_long", False)]
    return split_names("backend", text, known) or list(known)


def why_not(case: Case, known: Mapping[str, Backend]) -> str:
    """Return why *case* cannot run here, or an empty string."""
    backend = known[case.backend]
    return backend.probe(case.device).reason or backend.refuse(case) or _refuse_variant(case, backend)


def _refuse_variant(case: Case, backend: Backend) -> str:
    """Return that *case* has no such runtime variant, and which it has; empty if it has it."""
    has = variants_of(case, backend)
    if case.runtime_variant in has:
        return ""
    if case.has_variant(GRAPH) and case.device != "cuda":
        return "a CUDA graph needs device cuda"
    cell = f"{backend.name} {case.precision} on {case.device}"
    return f"{cell} has no variant {case.runtime_variant!r}; it has {', '.join(has)}"


def variants_of(case: Case, backend: Backend) -> tuple[str, ...]:
    """Return every runtime variant of the cell of *case*.

    They are the backend's own, each also tuned where there are settings to choose, and on CUDA each with and
    without a graph.

    A backend that has more than the plain one says so in a method ``variants_of(case)``.
    """
    own = getattr(backend, "variants_of", None)
    names: tuple[str, ...] = own(case) if own else (DEFAULT,)
    # Whether a batch can be divided is the case's; that there is something to choose is the cell's.
    if any(knobs_of(replace(case, batch_size=size), backend) for size in (case.batch_size, 2 * case.batch_size)):
        names = tuple(part for name in names for part in (name, join_variants(name, TUNED)))
    return names if case.device != "cuda" else (*names, *(join_variants(name, GRAPH) for name in names))


def select_variants(text: str | None, cell: Case, known: Mapping[str, Backend]) -> list[str]:
    """Return the runtime variants of *cell* that *text* asks for.

    A named one that the cell lacks is kept: its row says why it is refused.
    """
    has = variants_of(cell, known[cell.backend])
    if text is None:
        return [name for name in has if not ON_REQUEST & set(name.split("+"))]
    anywhere = {
        name
        for backend in known.values()
        for device, table in backend.precisions.items()
        for precision in table
        for architecture in known_architectures()
        for name in variants_of(
            replace(cell, architecture=architecture, backend=backend.name, device=device, precision=precision), backend
        )
    }
    return split_names("variant", text, sorted(anywhere)) or list(has)


def with_tuned(names: Sequence[str], cell: Case, known: Mapping[str, Backend], *, tune: bool) -> list[str]:
    """Return *names*, runtime variants of *cell*, each with its tuned one behind it if *tune* and it has one."""
    has = variants_of(cell, known[cell.backend])
    pairs = ((name, _tuned(name)) for name in names)
    both = (part for name, tuned in pairs for part in (name, *([tuned] if tune and tuned in has else [])))
    return list(dict.fromkeys(both))


def _tuned(name: str) -> str:
    """Return the tuned one of runtime variant *name*: a graph is captured around what was tuned."""
    parts = [part for part in name.split("+") if part not in (TUNED, GRAPH)]
    return join_variants(*parts, TUNED, *([GRAPH] if GRAPH in name.split("+") else []))


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
    """Return the thread count: all cores this process may use (`usable_cores`), unless *threads* says otherwise."""
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise ValueError(f"--threads {threads}: give a positive whole number")
    return threads


def resolve_builds(builds: int | None, processes: int, preset: int) -> int:
    """Return *builds*, or where that is None the *preset*'s if *processes* divide among them evenly, or one.

    Raises:
        ValueError: If *processes* do not divide evenly among *builds*.
    """
    if builds is None:
        return preset if processes % preset == 0 else 1
    if builds < 1 or processes % builds:
        raise ValueError(
            f"--builds {builds}: the processes that time a case are divided among its builds, and there are "
            f"{processes}; give --processes as well"
        )
    return builds


def split_sets(workers: Sequence[str], most: int) -> list[list[str]]:
    """Return *workers*, those of one network, cut in order into as few even sets as *most* allows."""
    count = -(-len(workers) // most)
    size, longer = divmod(len(workers), max(count, 1))
    starts = [index * size + min(index, longer) for index in range(count + 1)]
    return [list(workers[start:stop]) for start, stop in itertools.pairwise(starts)]
