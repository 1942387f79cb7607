"""A table of labels names its line where it is broken."""

from __future__ import annotations

import pytest

from lensing_models.data.candidate import BadFileError
from lensing_models.data.label_table import Row, index_rows, read_table

GOOD = b"file,label\na.fits,no\nb.fits,vort\n"


def test_rows_come_by_column() -> None:
    rows, broken = index_rows(read_table(GOOD, "t.csv", ("file", "label")), "file")

    assert {name: row.fields["label"] for name, row in rows.items()} == {"a.fits": "no", "b.fits": "vort"}
    assert broken == []


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD + b"\n\n"])
def test_marks_line_ends_and_empty_lines_of_other_systems_do_no_harm(content: bytes) -> None:
    rows, _ = index_rows(read_table(content, "t.csv", ("file", "label")), "file")

    assert list(rows) == ["a.fits", "b.fits"]


def test_a_missing_column_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"t\.csv lacks the columns index, weight; it has: file, label"):
        list(read_table(GOOD, "t.csv", ("index", "label", "weight")))


def test_an_empty_table_has_no_columns() -> None:
    with pytest.raises(ValueError, match=r"t\.csv lacks the columns file; it has: none"):
        list(read_table(b"", "t.csv", ("file",)))


def test_a_row_of_another_length_names_its_line() -> None:
    _, broken = index_rows(read_table(GOOD + b"c.fits\n", "t.csv", ("file",)), "file")

    assert [str(error) for error in broken] == ["t.csv line 4 has 1 fields, the header 2"]


def test_a_key_twice_names_both_lines() -> None:
    with pytest.raises(ValueError, match=r"t\.csv line 4: file 'a\.fits' is already in t\.csv line 2"):
        index_rows(read_table(GOOD + b"a.fits,no\n", "t.csv", ("file",)), "file")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"t\.csv is no CSV in UTF-8"):
        list(read_table(b"\xff\xfe\x00", "t.csv", ("file",)))


def test_a_quote_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"t\.csv line \d is no CSV"):
        list(read_table(GOOD + b'"c.fits,no\n', "t.csv", ("file",)))


@pytest.mark.parametrize("text", ["", "much", "nan", "inf"])
def test_a_field_that_is_no_number_names_line_and_column(text: str) -> None:
    row = Row(where="t.csv line 2", fields={"label": text})

    with pytest.raises(BadFileError, match=rf"t\.csv line 2: label is '{text}', not a number"):
        row.number("label")
