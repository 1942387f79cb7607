"""Compare with this machine's saved baseline, or save one (``python -m tests.benchmarks.regression``).

What is compared is a ratio: the fastest call of a benchmark over the fastest call of the anchor, a
fixed matrix product, each over all repeats of the suite. A clock that runs faster today speeds up
both; other people's load only ever adds to a call, so the fastest one sheds it. What looks slower
is measured a second time before it is called so.

Measured on a 2-core machine with 1.34 cores taken by other processes, nine runs of the suite: a
ratio differed by up to 2.0 from run to run and by up to 1.5 between the best of three, and by up to
1.7 between medians of median calls. Of all 1680 ways to hold three runs against three others, 17 %
gave one of the 15 benchmarks a false alarm at 1.25; of the 84 that hold all six others against
them, as the second measuring does, none. With all cores for each runtime instead of one, the same
load turned an eager call of 10 ms into one of 800: a barrier waits for the slowest thread. Hence the
defaults.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.environment import describe_environment
from bench.plan import resolve_threads
from bench.records import FOREIGN_LIMIT, Environment
from bench.run import resolve_device
from lensing_models.command_line import Parser, run_main
from tests.benchmarks import PLANT, THREADS
from tests.benchmarks.baseline import (
    Baseline,
    Document,
    Row,
    compare,
    is_slower,
    load_baseline,
    save_baseline,
    summarise,
)

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ROOT / "results" / "baselines"
THRESHOLD = 1.25
REPEATS = 3
#: Lines of a failed suite's output that are shown.
TAIL = 15


class SuiteFailedError(RuntimeError):
    """A benchmark failed, or the suite did not run; the message is the end of its output."""


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


def print_rows(rows: Sequence[Row], before: Baseline, now: Baseline, threshold: float) -> None:
    """Print the table, what else changed since the baseline, and the count of each verdict."""
    width = max(len(row.name) for row in rows)
    print(f"{'benchmark':{width}}  {'baseline':>9}  {'now':>9}  {'change':>7}  verdict")
    for row in rows:
        cells = [f"{row.before:9.4g}", f"{row.now:9.4g}", f"{row.now / row.before:7.3f}"]
        shown = "  ".join("-".rjust(len(cell)) if "nan" in cell else cell for cell in cells)
        print(f"{row.name:{width}}  {shown}  {row.verdict}")
    print(f"ratios to the anchor, which takes {now.anchor_s * 1e3:.3g} ms and took {before.anchor_s * 1e3:.3g} ms")
    versions = {**before.environment.versions, **now.environment.versions}
    for name in sorted(versions):
        old, new = (side.environment.versions.get(name, "absent") for side in (before, now))
        if old != new:
            print(f"{name}: {old} at the baseline, {new} now")
    if max(before.foreign_load, now.foreign_load) > FOREIGN_LIMIT:
        loads = f"{before.foreign_load:.0%} at the baseline, {now.foreign_load:.0%} now"
        print(f"contended: load of other processes over the threads in use {loads}; repeat on a quiet machine")
    counts = Counter(row.verdict for row in rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; threshold {threshold:g}")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m tests.benchmarks.regression", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--threshold", type=float, default=THRESHOLD, help=f"change that is a regression; default {THRESHOLD}")
    add("--repeats", type=int, default=REPEATS, help=f"runs of the suite; default {REPEATS}")
    add("--device", default="cpu", choices=("auto", "cpu", "cuda"), help="what the sessions run on; default cpu")
    add(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of every runtime; default 1: more are slowed by any neighbour",
    )
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
        raise ValueError(f"--plant is for comparing: save a baseline first, then leave out --save; looked for {path}")
    try:
        now = measure(options, environment, device, threads, before)
    except SuiteFailedError as error:
        print(f"the suite failed:\n{error}", file=sys.stderr)
        return 1
    if before is None:
        save_baseline(path, now)
        print(f"saved {path}")
        return 0
    rows = compare(before.ratios, now.ratios, options.threshold)
    print_rows(rows, before, now, options.threshold)
    return int(is_slower(rows))


def measure(
    options: argparse.Namespace, environment: Environment, device: str, threads: int, before: Baseline | None
) -> Baseline:
    """Run the suite, and once more if it looks slower than *before*: load passes, a regression stays."""
    documents = run_suite(device, threads, options.repeats, options.plant)
    now = summarise(documents, environment, device)
    if before is None or not is_slower(compare(before.ratios, now.ratios, options.threshold)):
        return now
    print("slower than the baseline; measuring again to make sure", file=sys.stderr)
    return summarise(documents + run_suite(device, threads, options.repeats, options.plant), environment, device)


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
