"""Is a session of ours as fast as what a user would write? (``python -m tests.benchmarks.fidelity_by_hand``)

The programs in `tests.benchmarks.by_hand` use each runtime's own Python API, export the network by
themselves and know nothing of this suite but its checkpoints. One of them and a worker of ours, each a
process, take turns on the same images: so many calls here, as many there, each first in every other pair.
Judged is the median over the pairs of our median time over theirs; pairs in which other work took more than
a block may lose to it are shown and do not count. Processes differ by a percent for good, so that there
are several of either, one after the other.

Exit code 1 if a median is beyond 2 %, 3 if fewer than half of the pairs counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.job import Job, load_test_images
from bench.measure import FOREIGN_LIMIT, BlockPlan, LoadMeter
from bench.plan import resolve_threads
from bench.process import Worker
from bench.records import Case
from bench.worker import INPUT_BUFFERS
from lensing_models.checkpoint import checkpoint_path
from lensing_models.command_line import Parser, run_main
from lensing_models.data.find import find_store
from lensing_models.preset import PRESETS
from lensing_models.registry import find_task

ROOT = Path(__file__).resolve().parents[2]
TASK = "substructure"
DEMAND = 0.02
#: Backend, precision, and what its program is told beside the rest.
RUNTIMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("onnx", "fp32", ()),
    ("openvino", "fp32", ("f32",)),
    ("openvino", "bf16", ("bf16",)),
    ("torchscript", "fp32", ()),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Our median time and theirs [s], and how busy other processes were meanwhile."""

    ours_s: float
    theirs_s: float
    foreign_load: float

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
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(case.threads), "PATH": ""},
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
    by_hand, worker = ByHand(job, images, more, folder), Worker(job)
    try:
        worker.ask("open", job.case.batch_size, job.case.threads, 0)
        worker.ask("warm_up")
        by_hand.time(20)
        yield by_hand, worker
    finally:
        by_hand.close()
        worker.close()


def compare(job: Job, images: Path, more: Sequence[str], folder: Path, pairs: int) -> list[Pair]:
    """Return *pairs* pairs of times of one pair of processes."""
    found = []
    with sides(job, images, more, folder) as (by_hand, worker):
        calls = max(5, len(worker.ask("block")))
        for number in range(pairs):
            meter = LoadMeter([by_hand.pid, worker.pid], job.case.threads)
            theirs_s = by_hand.time(calls) if number % 2 else 0.0
            ours_s = statistics.median(worker.ask("block"))
            theirs_s = theirs_s or by_hand.time(calls)
            found.append(Pair(ours_s=ours_s, theirs_s=theirs_s, foreign_load=meter.read()))
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


def judge(title: str, found: Sequence[Pair]) -> float | None:
    """Print what the pairs say, and return the median ratio; None where other work took too many of them."""
    clean = [pair for pair in found if pair.foreign_load <= FOREIGN_LIMIT]
    if 2 * len(clean) < len(found):
        print(f"{title}: not judged, other work took {len(found) - len(clean)} of {len(found)} pairs", flush=True)
        return None
    ratios = [pair.ratio for pair in clean]
    theirs_ms = 1e3 * statistics.median(pair.theirs_s for pair in clean)
    median = statistics.median(ratios)
    spread = f"{len(clean)} of {len(found)} pairs, {min(ratios):.4f} to {max(ratios):.4f}"
    print(f"{title}: by hand {theirs_ms:.3f} ms, ours/by hand {median:.4f} ({spread})", flush=True)
    return median


def run(argv: Sequence[str]) -> int:
    """Compare every runtime on every network and batch size; return 1, 3 or 0."""
    options = build_parser().parse_args(argv)
    threads = resolve_threads(options.threads)
    medians: list[float | None] = []
    with TemporaryDirectory(prefix="by-hand-") as made:
        folder = Path(made)
        for name in options.models.split(","):
            for batch in (int(text) for text in options.batch_sizes.split(",")):
                for backend, precision, more in RUNTIMES:
                    job = make_job(name, backend, precision, batch, threads, folder)
                    images = folder / f"images-{batch}.npy"
                    np.save(images, load_test_images(job.store)[: batch * INPUT_BUFFERS].numpy())
                    rounds = (compare(job, images, more, folder, options.pairs) for _ in range(options.processes))
                    found = [pair for pairs in rounds for pair in pairs]
                    medians.append(judge(f"{name} {backend} {precision} b{batch}", found))
    known = [median for median in medians if median is not None]
    if any(abs(median - 1) > DEMAND for median in known):
        return 1
    return 0 if len(known) == len(medians) else 3


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m tests.benchmarks.fidelity_by_hand", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="mobilenetv3_small,resnet18", help="comma list of networks")
    parser.add_argument("--batch-sizes", default="1,32", help="comma list")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of each two processes; default 8")
    parser.add_argument("--processes", type=int, default=3, help="processes of either side; default 3")
    return parser


if __name__ == "__main__":
    run_main(run)
