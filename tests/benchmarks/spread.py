"""How far do whole runs differ? (``python -m tests.benchmarks.spread --runs 5 --hogs 1 [-- options of bench.run]``)

The same cases are measured by several runs of `bench.run`, each with processes of its own, if asked beside processes
that keep a core busy each. What is judged is the coefficient of variation of the p50 over the rows that are called
``valid``: exit code 1 if it is more than the demand, 3 if no case has two of them. A run may call its rows contended,
but a wrong number must not be called valid: compare the table with one made without hogs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from bench.ending import SPOILT
from bench.level import LEVELS
from bench.provision import CACHE
from bench.records import RunRecord
from bench.report import build_report
from bench.statistic import latency_p50
from lensing_models.command_line import Parser, run_main

#: Largest coefficient of variation, quiet and beside other work.
DEMANDS = (0.01, 0.015)
#: Exit codes: of a run of which a case failed, and of this where there was nothing to judge.
FAILED, NOTHING_JUDGED = 1, 3
#: What is run by default: some two minutes a run on two cores.
CASES = (
    *("--models", "mobilenetv3_small,resnet18", "--tasks", "substructure", "--backends", "eager,onnx,openvino"),
    *("--precisions", "fp32", "--batch-sizes", "1", "--processes", "3"),
)


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep *count* cores busy with nothing."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_once(options: Sequence[str], out: Path) -> list[RunRecord]:
    """Return the measured records of one run into *out*."""
    command = [sys.executable, "-m", "bench.run", "--out", str(out), *options]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if ended.returncode == FAILED:
        print(f"{out}: a case failed; the others count", file=sys.stderr)
    elif ended.returncode not in (0, SPOILT):
        ended.check_returncode()
    return [row.record for row in build_report(out).rows.values() if row.record.timing]


@contextmanager
def kept_levels(path: Path) -> Iterator[None]:
    """Leave the file *path* as it was: what hogs made of the anchors is not what the machine can do."""
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


def report(runs: Sequence[Sequence[RunRecord]]) -> float | None:
    """Print each case's medians and validity over the *runs*; return the largest variation of valid ones, if any."""
    worst: float | None = None
    print("| case | p50 of each run [ms] | validity | variation of the valid ones |")
    print("|---|---|---|---|")
    for key in dict.fromkeys(record.case.key for records in runs for record in records):
        rows = [record for records in runs for record in records if record.case.key == key]
        medians = [latency_p50(row.timing).point for row in rows if row.timing]
        valid = [median for median, row in zip(medians, rows, strict=True) if row.validity == "valid"]
        spread = statistics.stdev(valid) / statistics.fmean(valid) if len(valid) > 1 else None
        worst = max(worst or 0.0, spread) if spread is not None else worst
        states = ", ".join(f"{count} {state}" for state, count in Counter(row.validity for row in rows).items())
        shown = " ".join(f"{1e3 * median:.3f}" for median in medians)
        print(f"| {key} | {shown} | {states} | {'too few' if spread is None else f'{spread:.2%}'} |")
    return worst


def main(argv: Sequence[str]) -> int:
    """Run, print a table, and return 1 where valid rows differ by more than the demand."""
    parser = Parser(prog="tests.benchmarks.spread", description="How far do whole runs differ?")
    parser.add_argument("--runs", type=int, default=5, help="runs of the same cases; default 5")
    parser.add_argument("--hogs", type=int, default=0, help="processes that keep a core busy meanwhile; default 0")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the run folders there; default: nowhere")
    parser.add_argument("options", nargs="*", help="options of bench.run, behind --; default: two small networks")
    options = parser.parse_args(argv)
    if options.runs < 2:
        parser.error(f"--runs {options.runs}: give 2 or more")
    with ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spread-")))
        if options.hogs:
            stack.enter_context(hogs(options.hogs))
        runs = []
        for number in range(options.runs):
            with kept_levels(CACHE / LEVELS) if options.hogs else nullcontext():
                runs.append(run_once(options.options or CASES, out / str(number)))
    demand = DEMANDS[options.hogs > 0]
    if (worst := report(runs)) is None:
        print("no case has two valid rows: nothing to judge")
        return NOTHING_JUDGED
    print(f"largest variation of valid rows: {worst:.2%}; asked at most {demand:.1%}")
    return int(worst > demand)


if __name__ == "__main__":
    run_main(main)
