"""The section of a page on evidence: what each session says that it ran, beside what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from bench import cell
from bench.page import markdown_table
from bench.records import Scalar
from bench.scored import SCORED
from bench.table import Report, Row, evidence_of

HEADER = ("network", "runtime", "asked", "ran", "rows", "what the session says")
#: Told elsewhere on the page, or of no use without the files beside it.
LEFT_OUT = frozenset({"precision", "fallback", "deprecated", "sweep", "sweep_file", "calibration", "onednn_kernels"})
#: Begins the names of what the session of two requests says otherwise.
SATURATED = "saturated_"
NOTES = """\
Read back from each runtime after it had answered, but for the threads of ONNX Runtime, which tells those that it was
given. Rows of a network whose sessions say the same share a line; `evidence` in `table.csv` has all that each said. A
row whose session ran something else than it was asked for is a `fallback`, with the reason."""


def evidence_section(report: Report) -> list[str]:
    """Return the section as its parts; none where no session said anything."""
    lines: dict[tuple[str, ...], int] = {}
    for row in report.rows.values():
        if evidence_of(row):
            case = row.record.case
            ran = str(evidence_of(row).get("precision", ""))
            line = (cell.network(row), cell.runtime(row), case.precision, ran, "; ".join(_told(row)))
            lines[line] = lines.get(line, 0) + 1
    if not lines:
        return []
    cells = [[*line[:4], str(count), line[4]] for line, count in lines.items()]
    return ["## Evidence", NOTES, markdown_table(HEADER, cells, ("rows",))]


def _told(row: Row) -> Iterator[str]:
    """Yield what the session of *row* says, shortened where it lists layers."""
    for name, value in evidence_of(row).items():
        if name not in LEFT_OUT and not name.startswith((SATURATED, SCORED)) and value is not None:
            yield f"{name.replace('_', ' ')} {_short(name, value)}"


def _short(name: str, value: Scalar) -> str:
    """Return *value*, of layers only how many, without which they are behind the colon."""
    return str(value).partition(": ")[0] if name.startswith("kept_") else str(value)
