"""The settings of a runtime that may be chosen, and what a search among them found. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.backends.base import Backend
from bench.records import BUILD, DEFAULT, Case, Scalar, join_variants

#: The runtime variant with the settings that were fastest.
TUNED = "tuned"
#: The knob that every runtime on a CPU has: the threads that it is given, at most those of the case.
THREADS = "threads"

Settings = Mapping[str, Scalar]


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """One setting, timed in turns with the best so far.

    Attributes:
        settings: What departs from the defaults.
        ratio: Its time over that of the best so far, in the same rounds; NaN where it has none.
        ratio_low: Lower end of the 95 % interval.
        ratio_high: Upper end.
        is_taken: Whether it became the best.
        failure: Why it has no time; empty if it has one.
    """

    settings: Settings
    ratio: float
    ratio_low: float
    ratio_high: float
    is_taken: bool = False
    failure: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What the search for one case found, a line of ``tuning.jsonl``.

    Attributes:
        case: Key of the case.
        settings: The best; empty if the defaults are.
        tries: All that was tried, in order.
        environment: Fingerprint of the machine.
    """

    case: str
    settings: Settings
    tries: tuple[Try, ...]
    environment: str = ""

    @property
    def is_timed(self) -> bool:
        """Return whether any try has a time."""
        return any(not math.isnan(each.ratio) for each in self.tries)

    @property
    def keeps_defaults(self) -> bool:
        """Return whether it is known that nothing tried was faster than the defaults."""
        return self.is_timed and not self.settings


def knobs_of(case: Case, backend: Backend) -> dict[str, tuple[Scalar, ...]]:
    """Return the values of each setting of *backend* that may be chosen for *case*, the default first.

    A backend that has any but the threads says so in a method ``knobs(case)``, and gives them to the one that
    its ``with_settings(settings)`` returns. Where the network is compiled anew in each process, a try takes
    minutes, and only what the backend names itself is tried.
    """
    own = getattr(backend, "knobs", None)
    named: dict[str, tuple[Scalar, ...]] = dict(own(case)) if own else {}
    if case.device == "cpu" and not getattr(backend, "compiles_long", False):
        named = {THREADS: thread_counts(case.threads), **named}
    return {name: values for name, values in named.items() if len(values) > 1}


def thread_counts(threads: int) -> tuple[int, ...]:
    """Return *threads*, half of it, and so on down to 1."""
    counts = [threads]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return tuple(counts)


def apply_settings(backend: Backend, case: Case, settings: Settings) -> tuple[Backend, Case]:
    """Return *backend* and *case* as *settings* have them; a thread count above that of *case* is left alone.

    Raises:
        ValueError: If a setting is not one of the backend's.
    """
    own = {name: value for name, value in settings.items() if name != THREADS}
    known = getattr(backend, "knobs", None)
    numbered = {BUILD} if getattr(backend, "builds_differ", False) else set()
    if unknown := own.keys() - (known(case).keys() if known else ()) - numbered:
        raise ValueError(f"{backend.name} has no setting {', '.join(sorted(unknown))}")
    tuned: Backend = backend.with_settings(own) if own else backend  # type: ignore[attr-defined]  # who has knobs has it
    threads = settings.get(THREADS)
    return tuned, replace(case, threads=min(threads, case.threads)) if isinstance(threads, int) else case


def untuned(case: Case) -> Case:
    """Return *case* with the default settings."""
    return replace(case, variant=join_variants(*(part for part in case.variant.split("+") if part != TUNED)))


def describe_settings(settings: Settings) -> str:
    """Return *settings* in words, e.g. ``streams=2, threads=1``; ``default`` if there are none."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or DEFAULT
