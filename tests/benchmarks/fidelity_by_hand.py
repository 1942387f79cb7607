"""Is a session of ours as fast as what a user would write? (``python -m tests.benchmarks.fidelity_by_hand``)

The programs in `tests.benchmarks.by_hand` use each runtime's own Python API, export the network by
themselves (with a fixed batch, where ours is dynamic until it is loaded) and know nothing of this suite but
its checkpoints. One of them and a worker of ours, each a process, take turns on the same images: so many
calls here, as many there, after three that do not count, each first in every other pair. Their answers are
compared first. Pairs in which other work took more of either side than a block may lose do not count.
Processes differ by a percent for good, so that there are several of either, one after the other.

Judged is the geometric mean over the processes of our median time over theirs: beyond 2 % surely (the whole
95 % interval is), exit code 1; 3 if fewer than half of the pairs of a case counted, or the interval is too wide
to tell; 4 if a side failed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.special import stdtrit

from bench.inputs import Rotation
from bench.interleave import block_limit
from bench.job import Job, load_test_images
from bench.measure import BlockPlan, LoadMeter, stopwatch
from bench.parity import AGREEMENT, TOLERANCE, Outputs, compare
from bench.plan import resolve_threads
from bench.process import Worker
from bench.records import Case
from lensing_models.checkpoint import checkpoint_path
from lensing_models.command_line import Parser, run_main
from lensing_models.data.find import find_store
from lensing_models.preset import PRESETS
from lensing_models.registry import find_task

ROOT = Path(__file__).resolve().parents[2]
TASK = "substructure"
DEMAND = 0.02
EXIT_CODES = {"failed": 4, "beyond": 1, "not surely": 3, "not judged": 3}
#: Backend, precision, and what its program is told beside the rest.
RUNTIMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("onnx", "fp32", ()),
    ("openvino", "fp32", ("f32",)),
    ("openvino", "bf16", ("bf16",)),
    ("torchscript", "fp32", ()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Our median time and theirs [s], whether other work took too much of either, and which processes they were."""

    ours_s: float
    theirs_s: float
    is_spoilt: bool
    process: int

    @property
    def ratio(self) -> float:
        """Return ours over theirs."""
        return self.ours_s / self.theirs_s


class ByHand:
    """The program for one runtime, at work in a process of its own."""

    def __init__(self, job: Job, images: Path, more: Sequence[str], folder: Path) -> None:
        case = job.case
        arguments = [str(job.checkpoint), str(images), str(case.batch_size), str(case.threads), *more]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.by_hand.{case.backend}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self._process.pid

    def time(self, calls: int) -> float:
        """Return the median time of *calls* calls [s]."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        # The exporter talks on the same line of communication.
        for line in self._process.stdout:
            if line[:1].isdigit():
                return float(line)
        raise RuntimeError(f"the program ended with exit code {self._process.wait()}")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def sides(job: Job, images: Path, more: Sequence[str], folder: Path) -> Iterator[tuple[ByHand, Worker]]:
    """Give the program and a worker of ours on the same case, both warm."""
    by_hand = ByHand(job, images, more, folder)
    try:
        # What it imports and exports is over before ours is opened and warmed up.
        by_hand.time(20)
        worker = Worker(job)
    except BaseException:
        by_hand.close()
        raise
    try:
        worker.ask("open", job.case.batch_size, job.case.threads, 0)
        worker.ask("score")
        worker.ask("warm_up")
        by_hand.time(20)
        theirs = np.load(folder / "answers.npy")
        check_same(np.load(job.outputs)[: len(theirs)], theirs, job.case)
        yield by_hand, worker
    finally:
        by_hand.close()
        worker.close()


def check_same(ours: Outputs, theirs: Outputs, case: Case) -> None:
    """Raise RuntimeError where both sides do not answer the same."""
    allowed = TOLERANCE if case.precision == "fp32" else AGREEMENT
    if not (error := compare(theirs, ours, "bf16").error) <= allowed:
        raise RuntimeError(
            f"{case.key}: by hand the answers differ by {error:.2g} of their rms; allowed are {allowed:.1g}"
        )


def take_pairs(job: Job, images: Path, more: Sequence[str], folder: Path, pairs: int, process: int) -> list[Pair]:
    """Return *pairs* pairs of times of one pair of processes, the number *process*."""
    found = []
    with sides(job, images, more, folder) as (by_hand, worker):
        first = len(worker.ask("block"))
        calls = max(5, first)

        def ours() -> float:
            if first > 1:
                return float(statistics.median(worker.ask("block")))
            # A session of slow calls has blocks of one, which discard none.
            return float(statistics.median([worker.ask("block")[0] for _ in range(3 + calls)][3:]))

        def theirs() -> float:
            return by_hand.time(calls)

        for number in range(pairs):
            measured = {}
            for side, pid in ((ours, worker.pid), (theirs, by_hand.pid))[:: 1 if number % 2 else -1]:
                # As in a block: a neighbour whose pool still spins disturbs like a stranger.
                meter, elapsed = LoadMeter([pid], job.case.threads), stopwatch()
                median_s = side()
                measured[side] = median_s, meter.read() > block_limit(elapsed(), job.case.threads)
            (ours_s, our_spoilt), (theirs_s, their_spoilt) = measured[ours], measured[theirs]
            spoilt = our_spoilt or their_spoilt
            found.append(Pair(ours_s=ours_s, theirs_s=theirs_s, is_spoilt=spoilt, process=process))
    return found


def make_job(name: str, backend: str, precision: str, batch: int, threads: int, folder: Path) -> Job:
    """Return the job of our side: the committed network *name*, on images of the quick test split."""
    case = Case(
        task=TASK,
        architecture=name,
        backend=backend,
        precision=precision,
        batch_size=batch,
        device="cpu",
        threads=threads,
    )
    return Job(
        case=case,
        checkpoint=checkpoint_path(ROOT / "results" / "checkpoints", TASK, name),
        store=find_store(find_task(TASK), None, PRESETS["quick"]).folder.resolve(),
        workdir=folder / "artifacts",
        reference=None,
        outputs=folder / "outputs.npy",
        plan=BlockPlan(block_s=0.3, calls=5, discards=3, warmup_s=1.0),
    )


def judge(title: str, found: Sequence[Pair]) -> str:
    """Print what the pairs say, and return ``within``, ``beyond``, ``not surely``, or ``not judged``.

    The last where other work took too many.
    """
    clean = [pair for pair in found if not pair.is_spoilt]
    logs = [
        [math.log(pair.ratio) for pair in clean if pair.process == process]
        for process in dict.fromkeys(pair.process for pair in found)
    ]
    if 2 * len(clean) < len(found) or min(map(len, logs)) == 0:
        print(f"{title}: not judged, other work took {len(found) - len(clean)} of {len(found)} pairs", flush=True)
        return "not judged"
    means = np.array([statistics.fmean(values) for values in logs])
    width = float(stdtrit(len(means) - 1, 0.975)) * float(means.std(ddof=1)) / math.sqrt(len(means))
    point, low, high = (math.exp(float(means.mean()) + shift) for shift in (0.0, -width, width))
    theirs_ms = 1e3 * statistics.median(pair.theirs_s for pair in clean)
    is_beyond = low > 1 + DEMAND or high < 1 - DEMAND
    is_sure = is_beyond or max(high - 1, 1 - low) <= DEMAND
    place = "beyond" if abs(point - 1) > DEMAND else "within"
    counted = f"{len(clean)} of {len(found)} pairs"
    said = f"by hand {theirs_ms:.3f} ms, ours/by hand {point:.4f} ({low:.4f} to {high:.4f}; {counted})"
    print(f"{title}: {said}: {place} {DEMAND:.0%}{'' if is_sure else ', not surely'}", flush=True)
    return "beyond" if is_beyond else "within" if is_sure else "not surely"


def run(argv: Sequence[str]) -> int:
    """Compare every runtime on every network and batch size; return one of `EXIT_CODES`, or 0."""
    options = build_parser().parse_args(argv)
    if options.processes < 2:
        raise ValueError("--processes: give 2 or more, over which the interval is")
    threads = resolve_threads(options.threads)
    # For both sides, as `bench.run` sets it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    verdicts = []
    with TemporaryDirectory(prefix="by-hand-") as made:
        folder = Path(made)
        for name in options.models.split(","):
            for batch in (int(text) for text in options.batch_sizes.split(",")):
                for backend, precision, more in RUNTIMES:
                    job = make_job(name, backend, precision, batch, threads, folder)
                    images = folder / f"images-{batch}.npy"
                    assert job.store
                    np.save(images, torch.cat(Rotation(load_test_images(job.store), job.case).buffers()).numpy())
                    title = f"{name} {backend} {precision} b{batch}"
                    try:
                        found = [
                            pair
                            for process in range(options.processes)
                            for pair in take_pairs(job, images, more, folder, options.pairs, process)
                        ]
                    except (OSError, RuntimeError) as error:
                        print(f"{title}: failed, {error}", flush=True)
                        verdicts.append("failed")
                    else:
                        verdicts.append(judge(title, found))
    return next((code for verdict, code in EXIT_CODES.items() if verdict in verdicts), 0)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m tests.benchmarks.fidelity_by_hand", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="mobilenetv3_small,resnet18", help="comma list of networks")
    parser.add_argument("--batch-sizes", default="1,32", help="comma list")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of each two processes; default 6")
    parser.add_argument("--processes", type=int, default=10, help="processes of either side; default 10")
    return parser


if __name__ == "__main__":
    run_main(run)
