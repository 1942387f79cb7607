"""The README's first screen: the frontier of a run, spliced between two markers."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench import cell, fit_notes, page
from bench.picture import draw_picture
from bench.records import Case
from bench.table import Report, Row, make_rows

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MOST_ROWS = 16
TITLES = {"trt": "TensorRT", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
HEADER = ("task", "batch", "network", "runtime", "latency p50 [ms]", "img/s", "quality", "vs. eager fp32")
NUMERIC = ("batch", "latency p50 [ms]", "img/s", "vs. eager fp32")

DRIFT = (
    "`non-inferior`: its answers to the same test images are worth as much as eager fp32's, within a margin; `cannot "
    "tell`: the test images are too few to say; rows that are `worse` are on no frontier, and stand in the run's own "
    "tables."
)
ALONE = "Latency is that of a whole batch and, like img/s, of the network alone, its images ready in memory."


def splice(path: Path, report: Report) -> None:
    """Replace what stands between the markers of the file *path* by the short table of *report*.

    Raises:
        OSError: If the file cannot be read or written.
        ValueError: If it has not one pair of markers in their order.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) > 2:
        raise ValueError(f"{path}: needs one line {BEGIN} and one line {END} behind it, to put the table between them")
    path.write_text(f"{before}{BEGIN}\n{short_table(report, path.parent)}\n{END}{after}", encoding="utf-8")


def short_table(report: Report, folder: Path) -> str:
    """Return the latency frontiers of *report*, their picture and how they were made, in Markdown.

    Args:
        report: What to tell.
        folder: Folder of the file that shows it, from which the picture is linked.

    Networks whose fit ended after a handful of steps are left out, and named, where others were fitted.
    """
    report, left_out = _without_unconverged(report)
    groups = [[report.rows[key] for key in found.keys] for found in report.frontiers if found.name != "throughput"]
    telling = [_telling(group) for group in groups]
    share = MOST_ROWS if sum(map(len, telling)) <= MOST_ROWS else max(2, MOST_ROWS // len(groups))
    rows = [row for group in telling for row in _spread(group, share)]
    if not rows:
        return f"No case of this run is on a frontier.\n\n{page.facts(report)}"
    parts = [page.markdown_table(HEADER, (_cells(row, report.rows) for row in rows), NUMERIC)]
    parts.append(" ".join([_remarks(report, groups, rows, left_out), *_not_executed(report.rows.values())]))
    picture = report.folder / ("pareto-converged.png" if left_out else "pareto.png")
    if left_out:
        draw_picture(picture, report)
    if picture.is_file():
        link = Path(os.path.relpath(picture.resolve(), folder.resolve())).as_posix()
        parts.append(f"![Quality against latency, one panel a task and batch size]({link})")
    return "\n\n".join([*parts, page.facts(report)])


def _without_unconverged(report: Report) -> tuple[Report, list[str]]:
    """Return *report* without networks that were hardly fitted, and these; all of it if no other is there."""
    records = [row.record for row in report.rows.values()]
    cut = dict.fromkeys(f"{row.case.network} on {row.case.task}" for row in records if row.hardly_fitted)
    if not cut or not any(record.converged or record.cut_to for record in records):
        return report, []
    rows, frontiers = make_rows(
        (record for record in records if not record.hardly_fitted), report.margins, report.levels
    )
    return dataclasses.replace(report, rows=rows, frontiers=frontiers), list(cut)


def _telling(rows: Sequence[Row]) -> list[Row]:
    """Return of each network the first of *rows*, a frontier in the order of latency, and its first one that is sure.

    Sure is a row whose answers are `non-inferior` to eager fp32's: slower ones of the same network are better by
    less than the margin.
    """
    of_network: dict[str, list[Row]] = {}
    for row in rows:
        of_network.setdefault(row.record.case.network, []).append(row)
    chosen = set()
    for own in of_network.values():
        sure = [row for row in own if row.drift_verdict in ("", "non-inferior")]
        chosen |= {row.record.case.key for row in (own[0], *sure[:1])}
    return [row for row in rows if row.record.case.key in chosen]


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """Return at most *most* of *rows*, the first and the last among them, evenly spaced."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]


def _cells(row: Row, rows: Mapping[str, Row]) -> list[str]:
    case = row.record.case
    worth = [f"{cell.label(name)} {cell.score(name, row.quality(name))}" for name in cell.shown_quality([row])]
    worth += [row.drift_verdict] if row.drift_verdict else []
    what = [case.task, str(case.batch_size), cell.network(row), f"{cell.runtime(row)} {case.precision}"]
    cost = [cell.latency(row), cell.significant(row.cost["throughput_img_s"])]
    return [*what, *cost, ", ".join(worth), _speed_up(row, rows)]


def _speed_up(row: Row, rows: Mapping[str, Row]) -> str:
    """Return how many times faster *row* is than eager fp32 of its network; ``~`` unless both are valid.

    Empty where eager fp32 did not run.
    """
    case = row.record.case
    plain = Case(
        task=case.task,
        architecture=case.architecture,
        backend="eager",
        precision="fp32",
        batch_size=case.batch_size,
        device=case.device,
        threads=case.threads,
        variant=case.network_variant,
    )
    baseline = rows.get(plain.key)
    if baseline is None or baseline.record.status != "ok":
        return ""
    ratio = baseline.cost["latency_p50_s"] / row.cost["latency_p50_s"]
    clean = row.record.validity == baseline.record.validity == "valid"
    return f"{'' if clean else '~'}{cell.significant(ratio, 2)}x"


def _not_executed(rows: Iterable[Row]) -> list[str]:
    """Return a sentence for each backend that was asked for and could not run at all."""
    states: dict[str, set[str]] = {}
    for row in rows:
        states.setdefault(row.record.case.backend, set()).add(row.record.status)
    return [
        f"{TITLES.get(backend, backend)}: not executed on this machine."
        for backend, found in states.items()
        if found == {"skipped"}
    ]


def _end_to_end(rows: Iterable[Row]) -> list[str]:
    """Return a sentence on that of *rows* whose way end to end is longest beside its latency; none if none has one."""
    known = [row for row in rows if not math.isnan(row.cost["end_to_end_p50_s"])]
    if not known:
        return []
    row = max(known, key=_times_as_long)
    case, times = row.record.case, cell.significant(_times_as_long(row), 2)
    whole, alone = (cell.significant(1e3 * row.cost[name]) for name in ("end_to_end_p50_s", "latency_p50_s"))
    return [
        f"The way from stored images to answers takes up to {times} times as long: {whole} instead of {alone} ms for "
        f"{case.network} on {case.task}, {cell.runtime(row)} {case.precision}, batch {case.batch_size} "
        "(`end_to_end_p50_s` in the run's `table.csv`)."
    ]


def _times_as_long(row: Row) -> float:
    return row.cost["end_to_end_p50_s"] / row.cost["latency_p50_s"]


def _validity(report: Report) -> list[str]:
    """Return a sentence on how many rows are not valid, and how many blocks were rejected; none if all are valid."""
    records = [row.record for row in report.rows.values() if row.record.timing]
    verdicts = [record.validity for record in records]
    others = len(verdicts) - verdicts.count("valid")
    if not others:
        return []
    accepted = [block.accepted for record in records if record.timing for block in record.timing.blocks]
    rejected = f"{100 * accepted.count(False) / max(len(accepted), 1):.0f} % of all blocks of calls were rejected"
    contended = verdicts.count("contended")
    return [
        f"Of {len(verdicts)} measured rows {others} are not `valid`, {contended} of them for other work on the "
        f"machine; {rejected}."
    ]


def _remarks(report: Report, groups: Iterable[Sequence[Row]], shown: Sequence[Row], left_out: Sequence[str]) -> str:
    """Return what a reader must know beside the table."""
    doubts = _validity(report)
    which = "`valid` rows" if doubts and any(row.frontier_kind != "provisional" for row in shown) else "rows"
    told = [
        f"Of the {which} that no other one beats (faster and no worse, or better and no slower): each network's "
        "fastest, and its fastest that is `non-inferior`.",
        *doubts,
        ALONE,
        *_end_to_end(shown),
        "± is the 95 % interval of the median within this run; whole runs differ by more (METHODOLOGY.md, at the end).",
    ]
    if not report.levels:
        told.append("This is the first known run on the machine: nothing tells whether all of it was slow.")
    text = " ".join(told)
    text += " The last column compares with eager fp32 of the same network; ~: one of the two is not `valid`."
    if not left_out and (hidden := sum(map(len, groups)) - len(shown)):
        text += f" {hidden} more are in the run's `pareto.csv`."
    cases = [row.record.case for row in shown if row.frontier_kind == "provisional"]
    if places := dict.fromkeys(f"{case.task} at batch {case.batch_size}" for case in cases):
        text += f" {page.PROVISIONAL[:2].upper()}{page.PROVISIONAL[2:]}: {', '.join(places)}."
    if any(row.drift_verdict for row in shown):
        text += f" {DRIFT}"
    if left_out:
        text += f" Left out, because their fits were cut short to save time: {', '.join(left_out)}."
    return " ".join([text, *fit_notes.unfinished([row.record for row in shown])])
