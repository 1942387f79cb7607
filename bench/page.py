"""The page of a run in Markdown: where, with what, one table a task, and what the columns mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench import cell, costs, fit_notes, machine
from bench.records import ANCHOR
from bench.table import Place, Report, Row, by_batch_and_latency, group_by_place

PROVISIONAL = "*provisional, measured under load*"

#: What the parts of a run's wall time are called; others go by their own names.
WORK = {
    "build": "build (export, compile, load, first calls)",
    "quality": "quality (reference, scoring)",
    "measuring": "measuring (blocks that count, the anchors, end to end, time of the GPU, energy)",
    "rejected": "measuring (rejected blocks)",
    "tuning": "tuning (search of the fastest settings)",
    "other": "other (imports, processes, records)",
}

NOTES = f"""\
## What the columns mean
- **latency p50**: median wall time of one call with its 95 % interval, one request in flight and each waited for;
  images and outputs stay on the device. The interval is a t-interval on the logarithms of block medians.
- **throughput**: images per second of wall time in the same calls; nothing overlaps.
{costs.NOTES}
- **validity**: `valid`; `contended`: other people's work spoilt too many blocks, or took too much of all, or an anchor
  was slow meanwhile;
  `undersampled`: too few blocks;
  `throttled`: power or heat slowed the GPU in more than a quarter of the blocks; `unstable`: the warm-up never
  settled, or the interval is wider than ±5 %; `fallback`: the runtime did something else than the row says.
- **drift**: whether the answers to the same test images are worth as much as eager fp32's, and the difference of the
  primary metric; `=`: none changed its class and no judged metric moved. Rows that are `worse` are on no frontier.
- **frontier**: ● no valid row of the same task and batch size is better on latency or on the primary metric without
  being worse on the other; ○ the same among all rows where fewer than half are valid: provisional, measured under load.
- `table.csv` holds every row with all digits, `pareto.csv` the members of each frontier."""


def render_page(report: Report, picture: str | None, sections: Sequence[str] = ()) -> str:
    """Return ``report.md`` of *report*.

    Args:
        report: What to tell.
        picture: Name of the picture's file in the same folder; None where nothing was drawn.
        sections: Parts that stand behind the tables, before what the columns mean.
    """
    parts = [f"# {report.fact('run') or report.folder.name}: accuracy and latency"]
    parts += [f"**{text}**" for text in [reservation(report)] if text]
    parts.append(facts(report))
    if picture:
        parts.append(f"![Quality against latency, one panel a task and batch size]({picture})")
    for place, rows in group_by_place(report.rows.values()).items():
        parts.append(f"## {place[0]} ({cell.machine(place)})")
        parts += [part for part in (_task_table(rows), _throughput(report, place), _left_out(rows)) if part]
    parts += [*_costs_beside_latency(report), *sections, NOTES, *machine.ceiling_section(report)]
    parts += [_measured(report), *_selftest(report), *_breakdown(report)]
    return "\n\n".join(parts) + "\n"


def reservation(report: Report) -> str:
    """Return in a sentence or two that no timed row of *report* is valid; empty if one is, or none was timed."""
    verdicts = Counter(row.record.validity for row in report.rows.values() if row.record.timing)
    if not verdicts or "valid" in verdicts:
        return ""
    why = ", ".join(f"{number} {validity}" for validity, number in verdicts.most_common())
    cause = ", measured under load" if verdicts["contended"] else ""
    return f"Provisional{cause}: no row is valid ({why}). Do not rely on these times; run it again on a quiet machine."


def facts(report: Report) -> str:
    """Return hardware, versions, date, command and revision as a list; what is unknown is left out."""
    environment = report.environment
    dates = [row.record.recorded_at for row in report.rows.values()]
    lines = {
        "Hardware": describe_hardware(report),
        "System": environment.platform if environment else "",
        "Ceilings": machine.describe_ceilings(report.about),
        "Versions": ", ".join(f"{name} {text}" for name, text in environment.versions.items()) if environment else "",
        "Date": report.fact("started_at") or min(dates, default=""),
        "Preset": report.fact("preset"),
        "Command": f"`{report.fact('command')}`" if report.fact("command") else "",
        "Revision": environment.revision if environment else "",
        "Fingerprint": environment.fingerprint if environment else "",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


def describe_hardware(report: Report) -> str:
    """Return the hardware on one line, memory in GiB; empty where it is not known."""
    parts = []
    for name, value in (report.environment.hardware if report.environment else {}).items():
        words = name.removesuffix("_bytes").removesuffix("_mhz").replace("_", " ")
        if name.endswith("_mhz"):
            parts.append(f"{words} {value} MHz")
        elif name == "governor":
            parts.append(f"governor {value}")
        elif isinstance(value, str):
            parts.append(value)
        elif value is not None:
            parts.append(f"{words} {value / 2**30:.1f} GiB" if name.endswith("_bytes") else f"{value} {words}")
    return ", ".join(part for part in parts if part)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]], numeric: Iterable[str] = ()) -> str:
    """Return a Markdown table whose columns named in *numeric* stand to the right."""
    right = set(numeric)
    rule = ["---:" if name in right else "---" for name in header]
    cells = [[text.replace("|", "\\|") for text in line] for line in (header, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _task_table(rows: Sequence[Row]) -> str:
    """Return the table of a task's ok rows; a line that says so where there are none."""
    shown = by_batch_and_latency(rows)
    if not shown:
        return "No case ran."
    names = cell.shown_quality(shown)
    columns = ["batch", "latency p50 [ms]", "throughput [img/s]", "saturated [img/s]", *map(cell.label, names)]
    judged = ["drift"] if any(row.drift_verdict for row in shown) else []
    lines = [
        [
            cell.network(row),
            cell.runtime(row),
            row.record.case.precision,
            str(row.record.case.batch_size),
            cell.latency(row),
        ]
        + [cell.significant(row.cost["throughput_img_s"]), costs.saturated(row)]
        + [cell.score(name, row.quality(name)) for name in names]
        + [*([cell.drift(row)] if judged else []), row.record.validity, cell.MARKS[row.frontier_kind]]
        for row in shown
    ]
    header = ["network", "backend", "precision", *columns, *judged, "validity", "frontier"]
    table = markdown_table(header, lines, columns)
    return "\n\n".join([table, *_reservations(shown)])


def _costs_beside_latency(report: Report) -> Iterator[str]:
    """Yield the heading and, for each task, the table of what its ok rows cost beside latency; nothing without such."""
    if not costs.has_costs(report.rows.values()):
        return
    yield "## Costs beside latency"
    groups = group_by_place(row for row in report.rows.values() if row.record.status == "ok")
    for place, rows in groups.items():
        if len(groups) > 1:
            yield f"### {place[0]} ({cell.machine(place)})"
        yield markdown_table(costs.HEADER, costs.lines(rows), costs.NUMERIC)
        if found := [*costs.largest_batches(rows), *costs.build_spreads(rows)]:
            yield "\n".join(found)


def _reservations(shown: Sequence[Row]) -> Iterator[str]:
    """Yield, for each batch size, what its frontier does not rest on; nothing where all rows are candidates."""
    for batch in sorted({row.record.case.batch_size for row in shown}):
        all_rows = [row for row in shown if row.record.case.batch_size == batch]
        rows = [row for row in all_rows if row.drift_verdict != "worse"]
        if worse := len(all_rows) - len(rows):
            yield f"Batch {batch}: {worse} of {len(all_rows)} rows answer worse than eager fp32; no frontier has them."
        doubtful = Counter(row.record.validity for row in rows if row.record.validity != "valid")
        why = ", ".join(f"{number} {validity}" for validity, number in doubtful.most_common())
        if any(row.frontier_kind == "provisional" for row in rows):
            count = f"of {len(rows)} rows, {doubtful.total()} are not valid ({why})"
            yield f"Frontier at batch {batch}: {PROVISIONAL}; {count}."
        elif doubtful and any(row.record.timing for row in rows):
            yield f"Frontier at batch {batch}: of {len(rows)} rows, {doubtful.total()} are no candidates ({why})."


def _throughput(report: Report, place: Place) -> str:
    """Return the throughput frontier of a task as a list, fastest first; empty where it has none."""
    found = next((item for item in report.frontiers if item.place == place and item.name == "throughput"), None)
    if found is None:
        return ""
    lines = []
    for row in (report.rows[key] for key in found.keys):
        case = row.record.case
        worth = f"{cell.label(found.y.name)} {cell.score(found.y.name, row.quality(found.y.name))}"
        speed = cell.significant(row.cost["throughput_img_s"])
        how = f"{cell.network(row)}, {cell.runtime(row)}, {case.precision}, batch {case.batch_size}"
        lines.append(f"- {speed} img/s, {worth}: {how}")
    kind = f" ({PROVISIONAL})" if found.kind == "provisional" else ""
    return "\n".join([f"Frontier of throughput over all batch sizes{kind}:", "", *lines])


def _left_out(rows: Sequence[Row]) -> str:
    """Return the skipped cases grouped by reason, every remark and every failed case; empty where there are none."""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.record.status == "skipped":
            reasons.setdefault(_one_line(row.record.reason), []).append(row)
    lines = [f"- skipped, {_cells(group)}: {reason}" for reason, group in reasons.items()]
    remarked = [row.record for row in rows if row.record.status == "ok" and row.record.reason]
    lines += [f"- remark, `{record.case.key}`: {_one_line(record.reason)}" for record in remarked]
    failed = [row.record for row in rows if row.record.status == "failed"]
    return "\n".join(lines + [f"- **failed**, `{record.case.key}`: {_one_line(record.reason)}" for record in failed])


def _cells(rows: Sequence[Row]) -> str:
    cases = [row.record.case for row in rows]
    kinds = ", ".join(dict.fromkeys(f"{case.backend} {case.precision}" for case in cases))
    return f"{kinds} ({len(cases)} {'case' if len(cases) == 1 else 'cases'})"


def _one_line(reason: str) -> str:
    return " ".join(reason.split()) or "no reason recorded"


def _measured(report: Report) -> str:
    """Return the notes that depend on the run: images, digests, fits, rejected blocks."""
    records = [row.record for row in report.rows.values()]
    lines = []
    for task, images, digest in sorted(
        {(r.case.task, r.quality_images, r.dataset_digest) for r in records if r.quality}
    ):
        sky = f" of sky `{report.skies[task]}`" if task in report.skies else ""
        lines.append(
            f"- {task}: quality comes through each backend and precision's own session, on {images} test images{sky} "
            f"(dataset digest `{digest[:12] or 'unknown'}`)."
        )
    lines += [f"- {remark}" for remark in (*fit_notes.strangers(report), *fit_notes.unfinished(records))]
    told = {(r.case.backend, r.measurement.evidence.get("deprecated")) for r in records if r.measurement}
    lines += [
        f"- {backend}: its makers call it deprecated {since}." for backend, since in sorted(told, key=str) if since
    ]
    lines += machine.anchor_lines(report)
    if failure := report.fact("anchor_failure"):
        lines.append(f"- **An anchor failed**, and judged no round after that: {_one_line(failure)}")
    blocks = [block for record in records if record.timing for block in record.timing.blocks]
    if blocks:
        rejected = [block for block in blocks if not block.accepted]
        slow = sum(block.rejected_for == ANCHOR for block in rejected)
        share = f"{100 * len(rejected) / len(blocks):.1f} %"
        cause = f": {len(rejected) - slow} for foreign load, {slow} because an anchor was slow" if rejected else ""
        lines.append(f"- {len(rejected)} of {len(blocks)} blocks ({share}) were rejected{cause}.")
    lines += [*machine.device_lines(records), *machine.energy_lines(records)]
    return "\n".join(["## How this run went", *lines]) if lines else ""


def _selftest(report: Report) -> list[str]:
    """Return the section on what the harness made of what is known; none where the run does not say."""
    test = report.about.get("selftest")
    if not isinstance(test, Mapping):
        return []
    lines = ["## Self-test", *(f"- **{text}**" for text in test.get("complaints", []))]
    if "overhead_s" in test:
        latencies = [row.cost["latency_p50_s"] for row in report.rows.values()]
        fastest = min((value for value in latencies if not math.isnan(value)), default=math.nan)
        share = f", {test['overhead_s'] / fastest:.2%} of the fastest case here" if fastest > 0 else ""
        lines.append(f"- A call that does nothing takes {1e6 * test['overhead_s']:.2f} us{share}.")
        waits = ", ".join(
            f"{name.removeprefix('wait_').replace('_', ' ')} {share:+.2%}" for name, share in test["bias"].items()
        )
        lines.append(f"- Known waits are measured: {waits}.")
        lines.append(f"- Equal waits: ratio {_ratio(test['same'])}; one 5 % longer: {_ratio(test['slowdown'])}.")
        caught = "was caught" if test["fault"] else "was not caught"
        lines.append(f"- A network {'passed' if test['exact'] else 'did not pass'} against itself; a fault {caught}.")
    if test.get("disturbed"):
        spoilt = f"{test['contended']:.0%} of its blocks"
        lines.append(f"- Other work spoilt {spoilt}: these times say nothing of the harness.")
    return ["\n".join([lines[0], "", *lines[1:]])]


def _breakdown(report: Report) -> list[str]:
    """Return the section on where the wall time went; none where the run does not say."""
    spent_s = report.breakdown_s
    total_s = sum(spent_s.values())
    if not total_s > 0:
        return []
    lines = [[WORK.get(part, part), f"{time_s:.1f}", f"{time_s / total_s:.0%}"] for part, time_s in spent_s.items()]
    table = markdown_table(["part", "seconds", "share"], [*lines, ["all", f"{total_s:.1f}", ""]], ["seconds", "share"])
    return [f"## Where the time went\n\n{table}"]


def _ratio(interval: Mapping[str, float | None]) -> str:
    """Return a ratio with its interval, as ``run.json`` holds it."""
    point, low, high = (interval[name] for name in ("point", "low", "high"))
    return "not known" if point is None or low is None or high is None else f"{point:.4f} ({low:.4f} to {high:.4f})"
