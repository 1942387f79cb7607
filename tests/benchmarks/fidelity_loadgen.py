"""Do our clock and MLPerf LoadGen agree? (``python -m tests.benchmarks.fidelity_loadgen``)

One eager session with random weights, in one process, on the same images: a long block of our clock
and a `single_stream` test of LoadGen take turns, each first in every other pair. What is judged is the
median over the pairs of LoadGen's p50 over ours, and the same of the p90. Where other work took more
than a block may lose to it, the pairs are shown and not judged (exit code 3): then the p50 itself moves
by more than the demand from one measurement to the next. What no load disturbs is printed first: both
clocks on the very same calls.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.arrival import LIBRARY_IMAGES, Arrivals, read_metrics
from bench.backends.eager import BACKEND
from bench.loadgen import run_test
from bench.measure import BlockPlan, Clock, LoadMeter
from bench.plan import resolve_threads
from bench.records import FOREIGN_LIMIT, Case
from bench.scenario import EXPECTED
from bench.statistic import FEWEST_SAMPLES
from lensing_models.command_line import Parser, run_main
from lensing_models.registry import find_architecture, find_task, select_pairs

TASK = "substructure"
#: How far the median ratios may be from 1.
DEMAND = 0.03
PERCENTS = (50, 90)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """LoadGen's latency over ours, by percentile, and how busy other processes were meanwhile."""

    ratios: tuple[float, ...]
    foreign_load: float


def open_arrivals(architecture: str, threads: int, seconds: float, folder: Path) -> Arrivals:
    """Return an eager session of *architecture* with random weights, and the images that both sides use."""
    task = find_task(TASK)
    case = Case(
        task=TASK,
        architecture=architecture,
        backend=BACKEND.name,
        precision="fp32",
        batch_size=1,
        device="cpu",
        threads=threads,
    )
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    session = BACKEND.prepare(find_architecture(architecture).build(task), case, folder)
    images = torch.rand(LIBRARY_IMAGES, *task.image_shape)
    plan = BlockPlan(block_s=seconds, calls=FEWEST_SAMPLES[90], discards=3, warmup_s=seconds)
    clock = Clock(session, list(torch.split(images, 1)), plan)
    return Arrivals(session=session, case=case, clock=clock, images=images, logs=folder / "logs")


def measure_pair(arrivals: Arrivals, p50_s: float, seconds: float, *, ours_first: bool) -> Pair:
    """Return how LoadGen's percentiles compare with those of a block of ours, measured next to each other."""
    settings = {"p50_s": p50_s, "min_queries": FEWEST_SAMPLES[90], "duration_s": seconds}
    meter = LoadMeter([], arrivals.case.threads)
    samples = arrivals.clock.block() if ours_first else ()
    theirs = arrivals.run("single_stream", settings).metrics
    samples = samples or arrivals.clock.block()
    ours = [float(np.percentile(samples, percent, method="inverted_cdf")) for percent in PERCENTS]
    ratios = tuple(theirs[f"latency_p{percent}_s"] / own for percent, own in zip(PERCENTS, ours, strict=True))
    return Pair(ratios=ratios, foreign_load=meter.read())


def time_same_calls(arrivals: Arrivals, p50_s: float, seconds: float) -> list[float]:
    """Return LoadGen's percentiles over ours, both of the same calls: what LoadGen adds to a call."""
    samples: list[float] = []
    settings = {"expected_latency_s": EXPECTED * p50_s, "min_queries": FEWEST_SAMPLES[90], "duration_s": seconds}
    test = run_test(
        "single_stream",
        lambda numbers: samples.append(arrivals.clock.call()),
        images=LIBRARY_IMAGES,
        batch_size=1,
        settings=settings,
        logs=arrivals.logs,
    )
    theirs = read_metrics("single_stream", test)
    ours = [float(np.percentile(samples, percent, method="inverted_cdf")) for percent in PERCENTS]
    return [theirs[f"latency_p{percent}_s"] / own for percent, own in zip(PERCENTS, ours, strict=True)]


def compare(architecture: str, threads: int, pairs: int, seconds: float) -> tuple[list[float], float]:
    """Print the ratios of each pair; return their medians, one a percentile, and the median foreign load."""
    with tempfile.TemporaryDirectory() as folder:
        arrivals = open_arrivals(architecture, threads, seconds, Path(folder))
        arrivals.clock.warm_up()
        p50_s = statistics.median(arrivals.clock.block())
        print(f"{architecture}, eager fp32, batch 1, threads {threads}: p50 {1e3 * p50_s:.3f} ms", flush=True)
        print(f"  same calls: {_words(time_same_calls(arrivals, p50_s, seconds))}", flush=True)
        found = []
        for number in range(pairs):
            found.append(measure_pair(arrivals, p50_s, seconds, ours_first=number % 2 == 0))
            print(
                f"  pair {number + 1}: {_words(found[-1].ratios)}; other work {found[-1].foreign_load:.0%}", flush=True
            )
    medians = [statistics.median(pair.ratios[index] for pair in found) for index in range(len(PERCENTS))]
    print(f"  median of {pairs}: {_words(medians)}")
    return medians, statistics.median(pair.foreign_load for pair in found)


def _words(ratios: Sequence[float]) -> str:
    return ", ".join(f"p{percent} LoadGen/ours {ratio:.4f}" for percent, ratio in zip(PERCENTS, ratios, strict=True))


def run(argv: Sequence[str]) -> int:
    """Compare on each network; return 1 if a median ratio is beyond the demand, 3 if other work disturbed."""
    options = build_parser().parse_args(argv)
    if options.pairs < 5 or not options.seconds > 0:
        raise ValueError("give 5 pairs or more, and seconds above 0")
    names = [architecture.label for _, architecture in select_pairs(options.models, TASK)]
    threads = resolve_threads(options.threads)
    found = [compare(name, threads, options.pairs, options.seconds) for name in names]
    worst = max((ratio for medians, _ in found for ratio in medians), key=lambda ratio: abs(ratio - 1))
    load = max(load for _, load in found)
    if load > FOREIGN_LIMIT:
        print(f"worst median ratio {worst:.4f}: not judged, other work took {load:.0%}")
        return 3
    is_within = abs(worst - 1) <= DEMAND
    print(f"worst median ratio {worst:.4f}: {'within' if is_within else 'BEYOND'} {DEMAND:.0%}")
    return int(not is_within)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m tests.benchmarks.fidelity_loadgen", description="Compare our clock with LoadGen.")
    parser.add_argument("--models", default="mobilenetv3_small,resnet18", help="comma list of networks")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the session; default 1")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of measurements, 5 or more; default 7")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement; default 3")
    return parser


if __name__ == "__main__":
    run_main(run)
