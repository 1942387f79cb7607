"""The JSON lines that carry the facts of `bench.records` and the like. No torch here."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

Fact = TypeVar("Fact")


def to_json(fact: object) -> str:
    """Return *fact*, a dataclass, as one line of JSON; NaN and infinities become null."""
    # The dataclass_transform of typeshed wants an instance type that no base class can state.
    return json.dumps(_plain(dataclasses.asdict(fact)), separators=(",", ":"))  # type: ignore[call-overload]


def from_json(kind: type[Fact], line: str) -> Fact:
    """Return the dataclass *kind* that `to_json` wrote.

    Raises:
        ValueError: If *line* is not JSON, or a field is missing or unknown.
    """
    try:
        return typing.cast(Fact, _rebuild(kind, json.loads(line)))
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def append_line(path: Path, fact: object) -> None:
    """Append *fact* to the JSONL file *path* and flush it to the disk."""
    import os

    with path.open("a", encoding="utf-8") as stream:
        stream.write(to_json(fact) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path, kind: type[Fact]) -> Iterator[Fact]:
    """Yield the facts of a JSONL file; a torn last line (a killed writer) is passed over.

    Raises:
        ValueError: If a line before the last one cannot be read; the message names file and line.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield from_json(kind, line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: {error}") from error


def read_schemas(path: Path) -> Iterator[int]:
    """Yield the ``schema`` of each line of a JSONL file of objects; lines that cannot be read have none."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and isinstance(facts.get("schema"), int):
            yield facts["schema"]


def _plain(value: object) -> object:
    """Return *value* with tuples as lists and non-finite floats as None, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _rebuild(kind: object, value: object) -> object:
    """Return *value*, parsed JSON, as the annotated type *kind*."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [item for item in arguments if item is not type(None)]
        return value if value is None or len(inner) > 1 else _rebuild(inner[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(_rebuild(arguments[0], item) for item in value)
    if kind is float and value is None:
        return float("nan")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _rebuild(hints[name], item) for name, item in value.items()})
    return value
