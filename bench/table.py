"""Records as rows: what each case cost, what it is worth, and which frontier it stands on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.level import review_rows
from bench.margin import DriftVerdict, judge_drift, read_margins
from bench.metrics import COST_METRICS, known_cost_metrics
from bench.paired import with_paired_interval
from bench.pareto import Directed, Point, frontier
from bench.parity import TOLERANCE
from bench.records import Environment, RunRecord, Scalar, Validity
from bench.scenario_record import ScenarioRecord
from bench.statistic import judge
from lensing_models.metrics import known_metrics
from lensing_models.registry import explain_unknown

Place = tuple[str, str, int]
"""Task, device and threads: only rows that share them compare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One case of a report.

    Attributes:
        cost: Cost metrics by name; NaN where one does not apply.
        frontier_kind: ``valid`` or ``provisional`` on the latency frontier of its batch size;
            empty off it.
        drift_verdict: Whether its answers are as good as eager fp32's, at the run's margins.
    """

    record: RunRecord
    cost: Mapping[str, float]
    frontier_kind: str = ""
    drift_verdict: DriftVerdict = ""

    @property
    def place(self) -> Place:
        """Return where the row competes."""
        return self.record.case.task, self.record.case.device, self.record.case.threads

    @property
    def on_frontier(self) -> bool | None:
        """Return whether the row is on its latency frontier; None for one that is not ok."""
        return bool(self.frontier_kind) if self.record.status == "ok" else None

    @property
    def saturated_validity(self) -> Validity:
        """Return how far the saturated throughput can be trusted; empty where it was not measured."""
        timing, known, case = self.record.throughput_timing, self.record.measurement, self.record.case
        if timing is None:
            return ""
        facts = known.evidence if known else {}
        # The session of two requests is another one; what it says otherwise has a name of its own.
        own = {name: facts.get(f"saturated_{name}", facts.get(name)) for name in ("fallback", "precision")}
        return judge(timing, {name: fact for name, fact in own.items() if fact is not None}, case.precision)

    def quality(self, name: str) -> float:
        """Return a quality metric; NaN where it was not measured."""
        value = self.record.quality.get(name)
        return math.nan if value is None else float(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """The cases of one task to which no other is as good on a cost and the primary metric, and better on one.

    Attributes:
        name: ``latency@b1`` and its like for one batch size, or ``throughput`` for all of them.
        kind: ``valid``, or ``provisional`` where fewer than half of the rows were valid.
        x: The cost.
        y: The primary metric.
        keys: Keys of the cases, best cost first.
    """

    name: str
    place: Place
    kind: str
    x: Directed
    y: Directed
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that the tables, the page and the picture of one run show.

    Attributes:
        folder: Folder of the run.
        about: Facts of ``run.json``: what was run, when, with which command.
        environment: Where the run was made; None where the folder does not say.
        rows: Rows by case key, in the order of the plan.
        scenarios: What was measured under other arrivals; empty where none was asked for.
    """

    folder: Path
    about: Mapping[str, object]
    environment: Environment | None
    rows: Mapping[str, Row]
    frontiers: tuple[Frontier, ...]
    scenarios: tuple[ScenarioRecord, ...] = ()

    @property
    def skies(self) -> Mapping[str, str]:
        """Return what the images of each task show, by task; runs before it was recorded tell nothing."""
        return self._texts("skies")

    @property
    def fitted_on(self) -> Mapping[str, str]:
        """Return what the images showed that each network was fitted on, by ``task/network``; as above."""
        return self._texts("fitted_on")

    def _texts(self, name: str) -> Mapping[str, str]:
        """Return a mapping in ``run.json`` as texts; empty where it has none."""
        found = self.about.get(name)
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}

    def fact(self, name: str) -> str:
        """Return a fact of ``run.json`` as text; empty where it has none."""
        value = self.about.get(name)
        return "" if value is None else str(value)

    @property
    def margins(self) -> Mapping[str, float]:
        """Return by metric how much less than eager fp32 a row's answers may be worth."""
        return read_margins(self.about)

    @property
    def anchors(self) -> dict[str, dict[str, float]]:
        """Return by network of the anchor its median time in each group [s]; empty where none was measured."""
        known = self.about.get("anchors")
        if not isinstance(known, Mapping):
            # Runs of before had one.
            known = {"mobilenetv3_small": self.about["anchor"]} if self.about.get("anchor") else {}
        return {str(name): _numbers(times) for name, times in known.items()}

    @property
    def levels(self) -> dict[str, float]:
        """Return by anchor how fast it can be by the runs before this one [s]."""
        return read_levels(self.about)

    @property
    def breakdown_s(self) -> dict[str, float]:
        """Return the wall time of the run by part [s]; empty where it was not recorded."""
        return _numbers(self.about.get("breakdown_s"))


def _numbers(known: object) -> dict[str, float]:
    """Return the numbers of a mapping of ``run.json`` by name; empty where it is none."""
    items = known.items() if isinstance(known, Mapping) else ()
    return {str(name): float(value) for name, value in items if isinstance(value, int | float)}


def evidence_of(row: Row) -> Mapping[str, Scalar]:
    """Return what the session of *row* said that it ran; empty where none was measured."""
    return row.record.measurement.evidence if row.record.measurement else {}


def read_levels(about: Mapping[str, object]) -> dict[str, float]:
    """Return by anchor how fast it can be by the runs before the one that *about* describes [s]."""
    return _numbers(about.get("anchor_levels_s"))


def make_rows(
    records: Iterable[RunRecord], margins: Mapping[str, float], levels: Mapping[str, float]
) -> tuple[dict[str, Row], tuple[Frontier, ...]]:
    """Return the rows by case key, in the order given, and the frontiers they make.

    A case that comes twice keeps its first place and its last record.

    Args:
        records: Of one run.
        margins: By which drift is judged.
        levels: How fast the anchors can be by earlier runs [s]; rows that met them slower are contended.
    """
    latest = {record.case.key: _restated(record) for record in review_rows(records, levels)}
    rows = {
        key: Row(record=record, cost=_costs(record), drift_verdict=judge_drift(record.drift, margins))
        for key, record in latest.items()
    }
    frontiers = tuple(_find_frontiers(rows.values()))
    kinds = {key: found.kind for found in frontiers if found.name != "throughput" for key in found.keys}
    marked = {key: dataclasses.replace(row, frontier_kind=kinds.get(key, "")) for key, row in rows.items()}
    return marked, frontiers


def _restated(record: RunRecord) -> RunRecord:
    """Return *record*, the interval of its accuracy's difference by the counts, whatever it was when recorded."""
    if record.drift is None:
        return record
    agrees = record.parity is not None and record.parity.error <= TOLERANCE
    return dataclasses.replace(record, drift=with_paired_interval(record.drift, agrees=agrees))


def group_by_place(rows: Iterable[Row]) -> dict[Place, list[Row]]:
    """Return the rows by task, device and threads, in the order of first appearance."""
    groups: dict[Place, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.place, []).append(row)
    return groups


def by_batch_and_latency(rows: Iterable[Row]) -> list[Row]:
    """Return the ok rows sorted by batch size, then latency; a row without one comes last."""

    def order(row: Row) -> tuple[int, float]:
        value = row.cost["latency_p50_s"]
        return row.record.case.batch_size, math.inf if math.isnan(value) else value

    return sorted((row for row in rows if row.record.status == "ok"), key=order)


def _costs(record: RunRecord) -> dict[str, float]:
    values = {metric.name: metric.compute(record) for metric in COST_METRICS}
    return {name: math.nan if value is None else value for name, value in values.items()}


def _find_frontiers(rows: Iterable[Row]) -> Iterable[Frontier]:
    """Yield the frontiers of every task, device and thread count: each batch size, then throughput."""
    costs = known_cost_metrics()
    for members in group_by_place(row for row in rows if row.record.status == "ok").values():
        for batch_size in sorted({row.record.case.batch_size for row in members}):
            batch = [row for row in members if row.record.case.batch_size == batch_size]
            yield from _find_frontier(f"latency@b{batch_size}", batch, costs["latency_p50_s"])
        yield from _find_frontier("throughput", members, costs["throughput_img_s"])


def _find_frontier(name: str, rows: Sequence[Row], x: Directed) -> Iterable[Frontier]:
    """Yield the frontier of ok *rows* of one task, unless none of them has both metrics.

    Rows whose answers are worse than eager fp32's are no candidates: they stand for another network.
    """
    rows = [row for row in rows if row.drift_verdict != "worse"]
    primary = next((row.record.primary_metric for row in rows if row.record.primary_metric), "")
    if not primary:
        return
    if primary not in known_metrics():
        raise LookupError(explain_unknown("metric", primary, known_metrics()))
    y = known_metrics()[primary]
    valid = [row for row in rows if row.record.validity == "valid"]
    # A handful of valid rows among many is what a noisy machine left, not a choice of configurations.
    settled = 2 * len(valid) >= len(rows)
    pool = valid if settled else [row for row in rows if row.record.validity != "fallback"]
    points = [
        Point(task=row.record.case.task, key=row.record.case.key, x=row.cost[x.name], y=row.quality(primary))
        for row in pool
    ]
    keys = tuple(point.key for point in frontier(points, x, y))
    if keys:
        yield Frontier(name=name, place=rows[0].place, kind="valid" if settled else "provisional", x=x, y=y, keys=keys)
