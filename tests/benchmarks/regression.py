"""Compare with this machine's saved baseline, or save one (``python -m tests.benchmarks.regression``).

What is compared is a ratio: the fastest call of a benchmark over the fastest call of the anchor, a
fixed matrix product. A clock that runs faster today speeds up both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environment import describe_environment
from bench.measure import FOREIGN_LIMIT, utc_now
from bench.plan import resolve_threads
from bench.records import Environment, from_json, to_json
from bench.run import resolve_device
from lensing_models.command_line import Parser, run_main
from tests.benchmarks import PLANT, THREADS

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "results" / "baselines"
THRESHOLD = 1.25
REPEATS = 3
#: Lines of a failed suite's output that are shown.
TAIL = 15

Document = Mapping[str, Any]  # JSON of pytest-benchmark


class SuiteFailedError(RuntimeError):
    """A benchmark failed, or the suite did not run; the message is the end of its output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the suite measured on one machine.

    Attributes:
        fingerprint: Digest of hardware, device and thread count: only equal ones compare.
        environment: Hardware, versions and revision, for the reader.
        saved_at: ISO 8601 time, UTC.
        repeats: Times that the suite was run.
        anchor_s: Fastest call of the anchor [s].
        foreign_load: Busy time of other processes as a share of the threads in use, median over
            the benchmarks; NaN where the system does not tell.
        medians_s: Median call [s] by benchmark, for the reader.
        ratios: What is compared, by benchmark.
    """

    fingerprint: str
    environment: Environment
    saved_at: str
    repeats: int
    anchor_s: float
    foreign_load: float
    medians_s: Mapping[str, float]
    ratios: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, ratio in self.ratios.items():
            if not isinstance(ratio, float | int) or not 0 < ratio < math.inf:
                raise ValueError(f"the ratio of {name} is {ratio!r}, not a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One benchmark before and now; NaN where it was not measured.

    Attributes:
        verdict: ``slower``, ``same``, ``faster``, ``new`` or ``missing``.
    """

    name: str
    before: float
    now: float
    verdict: str


def best_times(documents: Sequence[Document]) -> dict[str, float]:
    """Return the fastest call [s] of each benchmark over all repeats of the suite."""
    best: dict[str, float] = {}
    for document in documents:
        for row in document["benchmarks"]:
            best[row["name"]] = min(row["stats"]["min"], best.get(row["name"], math.inf))
    return best


def ratios(documents: Sequence[Document], anchor: str) -> dict[str, float]:
    """Return the fastest call of each benchmark over that of *anchor*, which is left out.

    Raises:
        LookupError: If *anchor* was not measured.
    """
    best = best_times(documents)
    if anchor not in best:
        raise LookupError(f"the anchor {anchor!r} was not measured; measured: {', '.join(best) or 'nothing'}")
    return {name: time / best[anchor] for name, time in best.items() if name != anchor}


def compare(before: Mapping[str, float], now: Mapping[str, float], threshold: float) -> list[Row]:
    """Return one row a benchmark: those of *now*, then the missing ones.

    Args:
        before: Ratios of the baseline by benchmark.
        now: Ratios measured now.
        threshold: Change beyond which a benchmark is slower; beyond its inverse it is faster.

    Raises:
        ValueError: If the two have no benchmark in common.
    """
    if not before.keys() & now.keys():
        raise ValueError(f"nothing to compare: the baseline holds {', '.join(before)}; measured: {', '.join(now)}")
    rows = []
    for name, ratio in now.items():
        old = before.get(name, math.nan)
        change = ratio / old
        verdict = "slower" if change > threshold else "faster" if change < 1 / threshold else "same"
        rows.append(Row(name=name, before=old, now=ratio, verdict=verdict if name in before else "new"))
    gone = [name for name in before if name not in now]
    return rows + [Row(name=name, before=before[name], now=math.nan, verdict="missing") for name in gone]


def run_suite(device: str, threads: int, repeats: int, plant: float | None) -> list[Document]:
    """Run the suite *repeats* times, one process each, and return what pytest-benchmark wrote.

    Raises:
        SuiteFailedError: If a benchmark fails.
    """
    settings = {THREADS: str(threads), "OMP_NUM_THREADS": str(threads)} | ({PLANT: str(plant)} if plant else {})
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "benchmarks"), "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-only", "-m", "gpu" if device == "cuda" else "not gpu"]
    documents = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1, repeats + 1):
            print(f"suite, run {turn} of {repeats}", file=sys.stderr, flush=True)
            path = Path(folder) / f"{turn}.json"
            wanted = [*command, f"--benchmark-json={path}"]
            done = subprocess.run(wanted, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
            if done.returncode:
                raise SuiteFailedError("\n".join((done.stdout + done.stderr).splitlines()[-TAIL:]))
            documents.append(json.loads(path.read_text(encoding="utf-8")))
    return documents


def summarise(documents: Sequence[Document], environment: Environment, device: str) -> Baseline:
    """Return what *documents*, repeats of the suite, say about the machine *environment*."""
    anchor = f"test_anchor[{device}]"
    found = ratios(documents, anchor)
    rows = [row for document in documents for row in document["benchmarks"]]
    medians = {
        row["name"]: [other["stats"]["median"] for other in rows if other["name"] == row["name"]] for row in rows
    }
    return Baseline(
        fingerprint=environment.fingerprint,
        environment=environment,
        saved_at=utc_now(),
        repeats=len(documents),
        anchor_s=best_times(documents)[anchor],
        foreign_load=statistics.median(row["extra_info"]["foreign_load"] for row in rows),
        medians_s={name: statistics.median(values) for name, values in medians.items()},
        ratios=found,
    )


def load_baseline(path: Path, fingerprint: str) -> Baseline:
    """Return the baseline in *path*.

    Raises:
        ValueError: If it cannot be read, or was saved on a machine with another fingerprint.
    """
    try:
        baseline = from_json(Baseline, path.read_text(encoding="utf-8"))
        if not isinstance(baseline, Baseline):
            raise ValueError("not a JSON object")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no baseline: {error}; measure again with --save") from error
    if baseline.fingerprint != fingerprint:
        raise ValueError(
            f"{path} was saved on {baseline.fingerprint}, this machine is {fingerprint}; "
            "speeds compare on equal hardware, device and threads only"
        )
    return baseline


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write *baseline* to *path*, one fact a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(json.loads(to_json(baseline)), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    print(f"saved {path}")


def print_rows(rows: Sequence[Row], before: Baseline, now: Baseline, threshold: float) -> None:
    """Print the table, what else changed since the baseline, and the count of each verdict."""
    width = max(len(row.name) for row in rows)
    print(f"{'benchmark':{width}}  {'baseline':>9}  {'now':>9}  {'change':>7}  verdict")
    for row in rows:
        cells = [f"{row.before:9.4f}", f"{row.now:9.4f}", f"{row.now / row.before:7.3f}"]
        shown = "  ".join("-".rjust(len(cell)) if "nan" in cell else cell for cell in cells)
        print(f"{row.name:{width}}  {shown}  {row.verdict}")
    print(f"ratios to the anchor, which takes {now.anchor_s * 1e3:.3g} ms and took {before.anchor_s * 1e3:.3g} ms")
    versions = {**before.environment.versions, **now.environment.versions}
    for name in sorted(versions):
        old, new = (side.environment.versions.get(name, "absent") for side in (before, now))
        if old != new:
            print(f"{name}: {old} at the baseline, {new} now")
    if max(before.foreign_load, now.foreign_load) > FOREIGN_LIMIT:
        loads = f"{before.foreign_load:.0%} of the threads at the baseline, {now.foreign_load:.0%} now"
        print(f"contended: other processes kept busy {loads}; repeat on a quiet machine what looks slower")
    counts = Counter(row.verdict for row in rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; threshold {threshold:g}")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m tests.benchmarks.regression", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--threshold", type=float, default=THRESHOLD, help=f"change that is a regression; default {THRESHOLD}")
    add("--repeats", type=int, default=REPEATS, help=f"runs of the suite; default {REPEATS}")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="what the sessions run on; default cpu")
    add("--threads", type=int, default=1, help="CPU threads of every runtime; default 1: more are slowed by any neighbour")
    add("--plant", type=float, metavar="FACTOR", help="slow every session down by this factor, to see it caught")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--baseline", type=Path, help="file to compare with; default: the one of this machine")
    place.add_argument("--save", action="store_true", help="replace this machine's baseline by what is measured")
    return parser


def run(argv: Sequence[str]) -> int:
    """Carry out the command line *argv* and return the exit code."""
    options = build_parser().parse_args(argv)
    check_numbers(options)
    device, threads = resolve_device(options.device, listing=False), resolve_threads(options.threads)
    environment = describe_environment(device, threads)
    path = options.baseline or BASELINES / environment.fingerprint / "baseline.json"
    before = None
    if not options.save and (options.baseline or path.exists()):
        before = load_baseline(path, environment.fingerprint)
    if options.plant and before is None:
        raise ValueError(f"--plant needs a baseline to compare with, and no --save; there is no {path}")
    try:
        now = summarise(run_suite(device, threads, options.repeats, options.plant), environment, device)
    except SuiteFailedError as error:
        print(f"the suite failed:\n{error}", file=sys.stderr)
        return 1
    if before is None:
        save_baseline(path, now)
        return 0
    rows = compare(before.ratios, now.ratios, options.threshold)
    print_rows(rows, before, now, options.threshold)
    return int(any(row.verdict == "slower" for row in rows))


def check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError for a number out of its range."""
    if not 1 < options.threshold < math.inf:
        raise ValueError(f"--threshold {options.threshold}: give a factor above 1, e.g. {THRESHOLD}")
    if options.repeats < 1:
        raise ValueError(f"--repeats {options.repeats}: give a positive whole number")
    if options.plant is not None and not 1 < options.plant < math.inf:
        raise ValueError(f"--plant {options.plant}: give a factor above 1, e.g. 1.5")


if __name__ == "__main__":
    run_main(run)
