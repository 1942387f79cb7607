"""The picture of a run: quality against latency, one panel a task and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench import cell
from bench.table import Frontier, Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS: Mapping[str, Literal["full", "none", "left", "bottom", "right"]] = {
    "fp32": "full",
    "tf32": "right",
    "bf16": "none",
    "fp16": "bottom",
    "int8": "left",
}
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_HEIGHT = 4.5, 3.1, 1.35
FAINT = 0.4
# Which multiples of a power of ten get a number, by the least ratio of the axis' ends.
TICKS = ((300, (1, 3)), (6, (1, 2, 5)), (0, (1, 1.5, 2, 3, 4, 5, 6, 8)))


def draw_picture(path: Path, report: Report) -> bool:
    """Write the picture of *report* to *path*; return False, writing nothing, without a frontier."""
    panels = [found for found in report.frontiers if found.name.startswith("latency@")]
    if not panels:
        return False
    # Without pyplot: no window system is asked for and nothing global is changed; PNG is Agg's.
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(panel.place for panel in panels))
    by_place = {place: [panel for panel in panels if panel.place == place] for place in places}
    columns = max(len(row) for row in by_place.values())
    size = (PANEL_WIDTH * max(2, columns), PANEL_HEIGHT * len(places) + LEGEND_HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(places) + 1, columns, height_ratios=[*[PANEL_HEIGHT] * len(places), LEGEND_HEIGHT])
    styles = _Styles(report.rows.values())
    for line, place in enumerate(places):
        for column, found in enumerate(by_place[place]):
            _draw_panel(figure.add_subplot(grid[line, column]), report, found, styles)
    _draw_legend(figure.add_subplot(grid[-1, :]), styles)
    figure.savefig(path, dpi=160)
    return True


class _Styles:
    """Which colour, marker and fill stand for which backend, network and precision."""

    def __init__(self, rows: Iterable[Row]) -> None:
        cases = [row.record.case for row in rows if row.record.status == "ok"]
        backends, networks = ({getattr(case, name): None for case in cases} for name in ("backend", "network"))
        self.colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(backends)}
        self.markers = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(networks)}
        self.precisions = [name for name in FILLS if any(case.precision == name for case in cases)]


def _draw_panel(axes: Axes, report: Report, found: Frontier, styles: _Styles) -> None:
    """Draw every ok row of one task and batch size, and the frontier among them."""
    batch_size = report.rows[found.keys[0]].record.case.batch_size
    rows = [
        row
        for row in report.rows.values()
        if row.record.status == "ok" and row.place == found.place and row.record.case.batch_size == batch_size
    ]
    drawn = [row for row in rows if not math.isnan(row.cost["latency_p50_s"] + row.quality(found.y.name))]
    for row in drawn:
        _draw_row(axes, row, found, styles)
    _set_log_axis(axes, "x", [1e3 * row.cost["latency_p50_s"] for row in drawn])
    _set_quality_axis(axes, found, [row.quality(found.y.name) for row in drawn])
    _draw_frontier(axes, [report.rows[key] for key in found.keys], found)
    axes.set_title(f"{found.place[0]}, batch {batch_size} ({cell.machine(found.place)})", fontsize=9, loc="left")
    axes.set_xlabel("latency p50 [ms]", fontsize=9)
    axes.set_ylabel(cell.label(found.y.name), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_row(axes: Axes, row: Row, found: Frontier, styles: _Styles) -> None:
    case = row.record.case
    x, low, high = (1e3 * row.cost[f"latency_p50{bound}_s"] for bound in ("", "_low", "_high"))
    colour = styles.colours[case.backend]
    axes.errorbar(
        [x],
        [row.quality(found.y.name)],
        xerr=None if math.isnan(high - low) else [[x - low], [high - x]],
        color=colour,
        marker=styles.markers[case.network],
        fillstyle=FILLS.get(case.precision, "full"),
        markerfacecoloralt="white",
        markersize=7.5,
        linestyle="none",
        elinewidth=1.2,
        capsize=2,
        alpha=1.0 if row.frontier_kind or _is_candidate(row) else FAINT,
        zorder=3 if row.frontier_kind else 2,
    )


def _is_candidate(row: Row) -> bool:
    return row.record.validity == "valid" and row.drift_verdict != "worse"


def _draw_frontier(axes: Axes, rows: Sequence[Row], found: Frontier) -> None:
    """Draw the best quality within each latency as steps, on to the right edge of the panel."""
    x = [1e3 * row.cost["latency_p50_s"] for row in rows]
    y = [row.quality(found.y.name) for row in rows]
    edge = axes.get_xlim()[1]
    dashes = "--" if found.kind == "provisional" else "-"
    axes.step([*x, edge], [*y, y[-1]], where="post", color="0.35", linewidth=1.2, linestyle=dashes, zorder=1)


def _set_quality_axis(axes: Axes, found: Frontier, values: Sequence[float]) -> None:
    """Scale the vertical axis, logarithmic for an error, and write in the corners that stay empty."""
    lower = found.y.better == "lower"
    if lower and min(values) > 0:
        _set_log_axis(axes, "y", values)
    else:
        axes.margins(y=0.12)
    best, worst = (0.03, 0.97) if lower else (0.97, 0.03)
    corner = partial(axes.text, transform=axes.transAxes, fontsize=8, color="0.35")
    corner(0.02, best, "↙ better" if lower else "↖ better", va="bottom" if lower else "top")
    if found.kind == "provisional":
        corner(0.98, worst, "provisional, measured under load", va="top" if lower else "bottom", ha="right")


def _set_log_axis(axes: Axes, name: Literal["x", "y"], values: Sequence[float]) -> None:
    """Make one axis logarithmic with room around *values* and plain numbers at enough of its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    margin = max((high / low) ** 0.08, 1.25)
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low / margin, high * margin)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    span = high / low * margin**2
    subs = next(subs for least, subs in TICKS if span >= least)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    """Return the number at a tick: plain, or as 8e-5 below 0.001."""
    return f"{value:g}" if value > 9e-4 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _draw_legend(axes: Axes, styles: _Styles) -> None:
    """Draw what colour, marker, fill and line mean, side by side under the panels."""
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

    def mark(name: str, **style: Any) -> Line2D:  # Any: Line2D's own keywords, each of another type
        look = {"color": "0.3", "marker": "o", "markersize": 7, "linestyle": "none", "markerfacecoloralt": "white"}
        return Line2D([], [], label=name, **{**look, **style})

    columns = {
        "runtime": [mark(name, color=colour) for name, colour in styles.colours.items()],
        "network": [mark(name, marker=marker) for name, marker in styles.markers.items()],
        "precision": [mark(name, fillstyle=FILLS[name]) for name in styles.precisions],
        "line and shade": [
            mark("frontier", marker="", linestyle="-"),
            mark("the same, provisional", marker="", linestyle="--"),
            mark("not valid, or worse", alpha=FAINT),
        ],
    }
    axes.set_axis_off()
    for index, (title, handles) in enumerate(columns.items()):
        legend = Legend(
            axes,
            handles,
            [str(handle.get_label()) for handle in handles],
            title=title,
            loc="upper left",
            bbox_to_anchor=(index / len(columns), 1.0),
            fontsize=8,
            title_fontsize=8.5,
            frameon=False,
            alignment="left",
            ncols=2 if len(handles) > 5 else 1,
            borderaxespad=0.0,
        )
        axes.add_artist(legend)
