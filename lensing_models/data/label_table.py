"""A CSV of labels: its columns are checked once, its rows one by one."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lensing_models.data.candidate import BadFileError


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row.

    Attributes:
        where: File and line, for messages.
        fields: The fields by column.
    """

    where: str
    fields: dict[str, str]

    def number(self, column: str) -> float:
        """Return the field of *column*; BadFileError if it is not a finite number."""
        text = self.fields[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadFileError(f"{self.where}: {column} is {text!r}, not a number")
        return value


def read_table(content: bytes, name: str, required: Sequence[str]) -> Iterator[Row | BadFileError]:
    """Yield each row of a CSV with a header, or what is wrong with it.

    Args:
        content: The file: UTF-8, with or without a byte-order mark.
        name: Its name, for messages.
        required: Columns that it must have; it may have more.

    Raises:
        ValueError: If it is not text or lacks a column.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no CSV in UTF-8: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        missing = [column for column in required if column not in header]
        if missing:
            found = ", ".join(header) or "none"
            raise ValueError(f"{name} lacks the columns {', '.join(missing)}; it has: {found}")
        for values in reader:
            where = f"{name} line {reader.line_num}"
            if not values:
                continue
            if len(values) != len(header):
                yield BadFileError(f"{where} has {len(values)} fields, the header {len(header)}")
            else:
                fields = dict(zip(header, (value.strip() for value in values), strict=True))
                yield Row(where=where, fields=fields)
    except csv.Error as error:
        raise ValueError(f"{name} line {reader.line_num} is no CSV: {error}") from error


def index_rows(rows: Iterator[Row | BadFileError], column: str) -> tuple[dict[str, Row], list[BadFileError]]:
    """Return the rows by their field of *column*, and the broken ones.

    Raises:
        ValueError: If two rows have the same field there; no rule can tell which is right.
    """
    by_key: dict[str, Row] = {}
    broken = []
    for row in rows:
        if isinstance(row, BadFileError):
            broken.append(row)
            continue
        key = row.fields[column]
        if key in by_key:
            raise ValueError(f"{row.where}: {column} {key!r} is already in {by_key[key].where}; labels must be unique")
        by_key[key] = row
    return by_key, broken
