"""Mean latency of our eager session beside timm's own benchmark, in one process, in turns.

timm's `benchmark.py` is in its repository (huggingface/pytorch-image-models), not in its package.
Run from the root of this repository, with that file at hand:

    python -m tests.benchmarks.fidelity_timm path/to/benchmark.py

The networks are made equal: timm's runner knows only three channels, so ours get three; the images
have the side that the network works at, so that ours resizes nothing; five classes, average pooling,
random weights, batch 1, fp32, network and images channels last, one thread. (Of a run's own images,
those with one channel lie in both layouts at once; one with three comes in as NCHW, which in processor
time was 2 % faster for MobileNetV3-small, in timm's hands as in ours.) Left different is what each of
them is: ours takes images in rotation, scales its outputs, and enters inference mode in each call.

A pair is timm's mean over its timed calls and ours over as many, one after the other, in an order that
alternates. Printed are the ratio of each pair, ours over timm's, and their median, which must be within
3 % of 1 for every network. Exit code 1 if it is not.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from bench.backends.eager import BACKEND
from bench.inputs import INPUT_BUFFERS
from bench.measure import BlockPlan, Clock
from bench.records import Case
from lensing_models.command_line import Parser, run_main
from lensing_models.registry import find_architecture, find_task

NETWORKS = ("mobilenetv3_small", "resnet18", "resnet34", "efficientnet_b5")
#: The one with three bands.
TASK = "galaxy_morphology"
ALLOWED = 0.03
DISCARDS = 3


def load_timm(path: Path) -> ModuleType:
    """Return timm's script *path* as a module.

    Raises:
        ValueError: If it is not that script.
    """
    spec = importlib.util.spec_from_file_location("timm_benchmark", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"no script {path}; take benchmark.py from timm's repository")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "InferenceBenchmarkRunner"):
        raise ValueError(f"{path} has no InferenceBenchmarkRunner; take benchmark.py from timm's repository")
    return module


def theirs(timm: ModuleType, name: str, calls: int) -> Callable[[], float]:
    """Return timm's measurement of network *name*: a mean latency [s]."""
    architecture, task = find_architecture(name), find_task(TASK)
    runner = timm.InferenceBenchmarkRunner(
        architecture.timm_name,
        device="cpu",
        precision="float32",
        channels_last=True,
        num_classes=task.output_count,
        gp="avg",
        batch_size=1,
        input_size=(task.image_shape[0], architecture.input_size, architecture.input_size),
        num_warm_iter=DISCARDS,
        num_bench_iter=calls,
    )
    return lambda: float(runner.run()["step_time"]) / 1e3


def ours(name: str, calls: int) -> Callable[[], float]:
    """Return our measurement of the same: the mean of a block's samples [s]."""
    architecture, task = find_architecture(name), find_task(TASK)
    shape = (task.image_shape[0], architecture.input_size, architecture.input_size)
    case = Case(
        task=TASK,
        architecture=name,
        backend="eager",
        precision="fp32",
        batch_size=1,
        device="cpu",
        threads=1,
    )
    session = BACKEND.prepare(architecture.build(replace(task, image_shape=shape)), case, Path())
    images = torch.rand(INPUT_BUFFERS, *shape).contiguous(memory_format=torch.channels_last)
    inputs = list(images.split(1))
    clock = Clock(session, inputs, BlockPlan(block_s=0.0, calls=calls, discards=DISCARDS, warmup_s=0.0))
    return lambda: statistics.fmean(clock.block())


def compare(timm: ModuleType, name: str, pairs: int, calls: int) -> list[float]:
    """Return, pair by pair, our mean latency of network *name* over timm's."""
    measure = {"timm": theirs(timm, name, calls), "ours": ours(name, calls)}
    ratios = []
    for turn in range(pairs):
        order = ("timm", "ours") if turn % 2 else ("ours", "timm")
        mean_s = {who: measure[who]() for who in order}
        ratios.append(mean_s["ours"] / mean_s["timm"])
        print(
            f"{name}: timm {1e3 * mean_s['timm']:.3f} ms, ours {1e3 * mean_s['ours']:.3f} ms: {ratios[-1]:.4f}",
            flush=True,
        )
    return ratios


def main(argv: Sequence[str]) -> int:
    """Compare every network; return 1 if a median is beyond what is allowed."""
    parser = Parser(prog="python -m tests.benchmarks.fidelity_timm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", type=Path, help="timm's benchmark.py")
    parser.add_argument("--models", default=",".join(NETWORKS), help="comma list of networks")
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--calls", type=int, default=20, help="timed calls of each in a pair, 5 or more")
    options = parser.parse_args(argv)
    if options.pairs < 5 or options.calls < 5:
        raise ValueError("--pairs and --calls: give 5 or more")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    timm = load_timm(options.script)
    medians = {}
    for name in options.models.split(","):
        ratios = compare(timm, name, options.pairs, options.calls)
        medians[name] = statistics.median(ratios)
        print(
            f"{name}: median ratio {medians[name]:.4f} of {len(ratios)} ({min(ratios):.4f} to {max(ratios):.4f})",
            flush=True,
        )
    return int(any(abs(median - 1) > ALLOWED for median in medians.values()))


if __name__ == "__main__":
    run_main(main)
