"""Does the harness measure what is known? In every run, and at length by ``python -m bench.selftest``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.control import CONTROL, TRUTHS
from bench.control_timing import BLOCK, PROCESSES, compare_networks, control_job, time_controls
from bench.crew import compared_images
from bench.job import Job
from bench.json_lines import to_json
from bench.process import Oversight, Worker, WorkerError
from bench.statistic import Interval, latency_p50, latency_ratio
from lensing_models.command_line import Parser, run_main

#: What a run's own self-test times.
TIMED = ("null", "wait_1ms", "wait_5ms", "wait_5ms_again", "wait_5ms_slow", "wait_20ms")
MOST_OVERHEAD_S, MOST_BIAS = 1e-6, 0.01
MOST_CONTENDED = 0.5  # share of the blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    """What was found, beside what was known.

    Attributes:
        overhead_s: Median time of a call that does nothing [s]: what the clock adds to every latency.
        bias: Measured over true time of a known wait, less 1, by variant.
        same: Ratio of two equal waits, which is 1.
        slowdown: Ratio of two waits of which one is 5 % longer.
        exact: Whether a network passed the comparison with itself.
        fault: Whether an error of three tolerances did not.
        contended: Share of the blocks that other people's work spoilt.
    """

    overhead_s: float
    bias: Mapping[str, float]
    same: Interval
    slowdown: Interval
    exact: bool
    fault: bool
    contended: float

    @property
    def is_disturbed(self) -> bool:
        """Return whether other people's work spoilt so much that the times say nothing of the harness."""
        return self.contended > MOST_CONTENDED

    def complaints(self) -> list[str]:
        """Return what the harness got wrong, its times only where they were not disturbed; empty if nothing."""
        worst = max(self.bias.values(), key=abs, default=math.nan)
        timed = {
            f"a call that does nothing takes {self.overhead_s * 1e6:.2f} us": self.overhead_s < MOST_OVERHEAD_S,
            f"a known wait is measured {worst:+.1%} wrong": abs(worst) <= MOST_BIAS,
            "a slowdown of 5 % was not seen": self.slowdown.low > 1.0,
        }
        compared = {"a network differs from itself": self.exact, "a faulty output was not caught": self.fault}
        checks = compared if self.is_disturbed else {**timed, **compared}
        return [text for text, is_right in checks.items() if not is_right]


def run_selftest(job: Job, oversight: Oversight | None = None) -> SelfTest:
    """Return what the harness makes of what is known, through the same workers, clock and blocks as everything else.

    Args:
        job: Any of the run; its data and its machine are used, with an anchor's network and random weights.
        oversight: What each of its processes may take.

    Raises:
        WorkerError: If a process of it failed.
    """
    timings = time_controls(job, TIMED, oversight=oversight)
    medians = {name: latency_p50(timing).point for name, timing in timings.items()}
    waits = {name: TRUTHS[name].wait_s for name in TIMED if TRUTHS[name].wait_s}
    blocks = [block for timing in timings.values() for block in timing.blocks]
    exact, faulty = are_passed(job, ("network", "network_faulty"), oversight)
    return SelfTest(
        overhead_s=medians["null"],
        bias={name: medians[name] / wait - 1 for name, wait in waits.items()},
        same=latency_ratio(timings["wait_5ms_again"], timings["wait_5ms"]),
        slowdown=latency_ratio(timings["wait_5ms_slow"], timings["wait_5ms"]),
        exact=exact,
        fault=not faulty,
        contended=sum(not block.accepted for block in blocks) / len(blocks),
    )


def are_passed(job: Job, names: Sequence[str], oversight: Oversight | None = None) -> list[bool]:
    """Return whether the outputs of each of the controls *names* pass the comparison with one reference."""
    passed: list[bool] = []
    with ExitStack() as stack:
        reference = Path(stack.enter_context(TemporaryDirectory(prefix="selftest-"))) / "reference.npy"
        for name in names:
            worker = Worker(replace(control_job(job, name), reference=reference), oversight)
            stack.callback(worker.close)
            images = compared_images(worker.job.case)
            if not passed:
                worker.ask("reference", job.case.threads, images)
            passed.append(not worker.ask("open", 1, job.case.threads, images).failure)
    return passed


def to_facts(test: SelfTest) -> dict[str, object]:
    """Return *test* and its complaints as they stand in ``run.json``."""
    figures: dict[str, object] = json.loads(to_json(test))
    return {**figures, "disturbed": test.is_disturbed, "complaints": test.complaints()}


def render(test: SelfTest) -> str:
    """Return a line for each thing that was known."""
    lines = [f"a call that does nothing: {test.overhead_s * 1e6:.2f} us"]
    lines += [f"{name}: {share:+.2%}" for name, share in test.bias.items()]
    lines += [f"equal waits: ratio {_interval(test.same)}", f"5 % slower: ratio {_interval(test.slowdown)}"]
    lines += [f"a network against itself: {'passed' if test.exact else 'FAILED'}"]
    lines += [f"a faulty output: {'caught' if test.fault else 'NOT CAUGHT'}", f"spoilt blocks: {test.contended:.0%}"]
    lines += ["disturbed: the times say nothing of the harness"] if test.is_disturbed else []
    return "\n".join([*lines, *(f"complaint: {text}" for text in test.complaints())])


def _interval(value: Interval) -> str:
    return f"{value.point:.4f} ({value.low:.4f} to {value.high:.4f})"


def main(argv: Sequence[str]) -> int:
    """Run the self-test and, with --repeats, the comparisons; return 1 if something known was measured wrong."""
    parser = Parser(prog="bench.selftest", description="Measure what is known.")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="compare a network with itself N times")
    parser.add_argument(
        "--processes", type=int, default=PROCESSES, metavar="N", help="of either side, each time; default: %(default)s"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    if options.repeats < 0:
        parser.error(f"--repeats {options.repeats}: give 0 or more")
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: give a positive whole number")
    from bench.run import resolve_device

    job = stand_alone_job(resolve_device(options.device, listing=False), options.threads)
    try:
        test = run_selftest(job)
        print(render(test), flush=True)
        facts = to_facts(test)
        if options.repeats:
            found = compare_networks(job, options.repeats, options.processes)
            verdicts = {name: asdict(verdict) for name, verdict in found.items()}
            facts["called_different"] = {"processes": options.processes, **verdicts}
            for name, verdict in found.items():
                print(f"{name}: {verdict}")
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(bool(test.complaints()))


def stand_alone_job(device: str, threads: int | None) -> Job:
    """Return a job on a handful of simulated images, in the cache."""
    from bench.plan import resolve_threads
    from bench.provision import CACHE
    from bench.records import Case
    from lensing_models.data.find import find_store
    from lensing_models.preset import PRESETS
    from lensing_models.registry import find_task

    store = find_store(find_task("substructure"), None, PRESETS["quick"])
    workdir = CACHE / "artifacts"
    workdir.mkdir(parents=True, exist_ok=True)
    case = Case(
        task="substructure",
        architecture="mobilenetv3_small",
        backend=CONTROL.name,
        precision="fp32",
        batch_size=1,
        device=device,
        threads=resolve_threads(threads),
    )
    return Job(
        case=case,
        checkpoint=None,
        store=store.folder.resolve(),
        workdir=workdir.resolve(),
        reference=None,
        outputs=(workdir / "selftest-outputs.npy").resolve(),
        plan=BLOCK,
    )


if __name__ == "__main__":
    run_main(main)
