"""The inside of a worker process, one network, backend and precision: open, score, warm up, time."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from bench.control import CONTROL
from bench.measure import BlockPlan, Clock, stopwatch
from bench.records import Case, Measurement, Parity, Scalar

if TYPE_CHECKING:
    import torch

    from bench.arrival import Outcome
    from bench.backends.base import Session
    from bench.parity import Outputs
    from lensing_models.network import LensNetwork

#: Buffers of real test images that the timed calls take in turn.
INPUT_BUFFERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one worker works on.

    Attributes:
        case: The first of its cases; the others differ in the batch size.
        checkpoint: Weights; None for random ones, whose speed is the same (the anchor).
        store: Folder of the data set.
        workdir: Folder of exported files and engines.
        reference: File of the reference outputs of the first test images; None for the anchor.
        outputs: File for the outputs of the whole test split.
        plan: How long a block is.
    """

    case: Case
    checkpoint: Path | None
    store: Path
    workdir: Path
    reference: Path | None
    outputs: Path
    plan: BlockPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Answer to `open`: the session of one batch size stands, its outputs have been compared."""

    build_s: float
    artifact_bytes: int | None
    parity: Parity | None
    failure: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Answer to `score`: quality of the outputs on the test split, or what is wrong with them."""

    quality: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    failure: str = ""


class Bench:
    """The inside of a worker process: one session at a time."""

    def __init__(self, job: Job) -> None:
        self._job, self._images = job, load_test_images(job.store)
        self._stack = ExitStack()
        self._session: Session | None = None
        self._case = job.case

    def open(self, batch_size: int, threads: int, compared: int) -> Opened:
        """Build the session for *batch_size* and *threads*; compare its outputs for *compared* test images.

        They are held against the reference and against those of this worker's scored session.
        """
        import torch

        from bench.backends import known_backends
        from bench.parity import run_through

        self._stack.close()
        self._stack, self._session = ExitStack(), None
        torch.set_num_threads(threads)
        self._case = replace(self._job.case, batch_size=batch_size, threads=threads)
        network = load_network(self._job)
        elapsed = stopwatch()
        backend = CONTROL if self._case.backend == CONTROL.name else known_backends()[self._case.backend]
        prepared = backend.prepare(network, self._case, self._job.workdir)
        self._session = self._stack.enter_context(prepared)
        build_s = elapsed()
        parity, failure = None, ""
        if compared:
            outputs = run_through(self._session, self._images[:compared], self._case)
            parity, failure = self._hold_against_reference(outputs)
            failure = failure or self._disagreement(outputs)
        self._clock = Clock(self._session, self._inputs(), self._job.plan)
        return Opened(build_s=build_s, artifact_bytes=self._session.artifact_bytes, parity=parity, failure=failure)

    def score(self) -> Scored:
        """Run the whole test split through the session and score its outputs.

        They are kept in the job's file, for `compare` and for paired comparisons later.
        """
        import numpy as np

        from bench.parity import explain_not_finite, run_through
        from lensing_models.data.store import open_store
        from lensing_models.metrics import score
        from lensing_models.registry import find_task

        outputs = run_through(self._open_session(), self._images, self._case)
        np.save(self._job.outputs, outputs)
        if not np.isfinite(outputs).all():
            return Scored(failure=explain_not_finite(outputs))
        labels = open_store(self._job.store).labels("test")
        return Scored(quality=score(find_task(self._case.task), outputs, labels), images=len(outputs))

    def compare(self) -> tuple[Parity | None, str]:
        """Return the parity of what was scored, and why it is not passed or an empty string."""
        import numpy as np

        return self._hold_against_reference(np.load(self._job.outputs))

    def warm_up(self) -> tuple[int, bool]:
        """Call until the times settle; see `Clock.warm_up`."""
        return self._clock.warm_up()

    def block(self) -> tuple[float, ...]:
        """Return the samples of one block [s]."""
        return self._clock.block()

    def scenario(self, name: str, settings: Mapping[str, float], logs: Path) -> Outcome:
        """Return what scenario *name* makes of the open session; see `bench.scenario`."""
        from bench.arrival import Arrivals

        arrivals = Arrivals(
            session=self._open_session(), case=self._case, clock=self._clock, images=self._images, logs=logs
        )
        return arrivals.run(name, settings)

    def evidence(self) -> tuple[Mapping[str, Scalar], str]:
        """Return the session's evidence and the digest of the inputs it was timed on.

        A runtime that says it used another number of threads than the case's did something else.
        """
        digest = hashlib.sha256()
        for buffer in self._inputs():
            digest.update(buffer.cpu().numpy().tobytes())
        facts = dict(self._open_session().evidence())
        if facts.get("threads") not in (None, self._case.threads):
            facts.setdefault("fallback", f"ran with {facts['threads']} threads, not {self._case.threads}")
        return facts, digest.hexdigest()

    def _hold_against_reference(self, outputs: Outputs) -> tuple[Parity | None, str]:
        """Return the parity of the first test images' *outputs*; None where there is no reference."""
        import numpy as np

        from bench.parity import compare, explain_failure

        if self._job.reference is None:
            return None, ""
        reference = np.load(self._job.reference)[: len(outputs)]
        compared = outputs[: len(reference)]
        parity = compare(compared, reference, self._case.precision)
        return parity, "" if parity.passed else explain_failure(compared, parity)

    def _disagreement(self, outputs: Outputs) -> str:
        """Return how *outputs* contradict the scored session of this worker, if there was one."""
        import numpy as np

        from bench.parity import explain_disagreement

        if self._job.reference is None or not self._job.outputs.exists():
            return ""
        reference = np.load(self._job.reference)[: len(outputs)]
        scored = np.load(self._job.outputs)[: len(reference)]
        return explain_disagreement(outputs[: len(reference)], scored, reference)

    def _inputs(self) -> list[torch.Tensor]:
        """Return the rotated buffers: consecutive test images, wrapped round where they run out."""
        import torch

        batch, total = self._case.batch_size, len(self._images)
        rows = [(torch.arange(batch) + turn * batch) % total for turn in range(INPUT_BUFFERS)]
        return [self._images[row].contiguous().to(self._case.device) for row in rows]

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session is open")
        return self._session


def load_test_images(store: Path) -> torch.Tensor:
    """Return the test images (N, C, H, W) float32 in [0, 1] of the data set in *store*."""
    from lensing_models.data.preprocess import scale_to_unit
    from lensing_models.data.store import open_store

    opened = open_store(store)
    return scale_to_unit(opened.counts(opened.indices("test")))


def load_network(job: Job) -> LensNetwork:
    """Return the job's network, fp32 on the CPU."""
    import torch

    from lensing_models.checkpoint import load_checkpoint
    from lensing_models.registry import find_architecture, find_task

    if job.checkpoint is not None:
        return load_checkpoint(job.checkpoint)[0]
    torch.manual_seed(0)
    return find_architecture(job.case.network).build(find_task(job.case.task))


def write_reference(job: Job, threads: int) -> None:
    """Compute the reference outputs of the first test images and write them to the job's file."""
    import numpy as np
    import torch

    from bench.parity import PARITY_IMAGES, compute_reference

    torch.set_num_threads(threads)
    if job.reference is None:
        raise ValueError("the job names no file for the reference")
    images = load_test_images(job.store)[:PARITY_IMAGES]
    np.save(job.reference, compute_reference(load_network(job), images, job.case.device))


def serve(connection: Connection, job: Job) -> None:
    """Answer the parent's calls until it hangs up; the entry point of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    bench: Bench | None = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:  # the parent is gone
            return
        try:
            answer: object = None
            if name == "reference":
                write_reference(job, *arguments)
            else:
                bench = bench or Bench(job)
                answer = getattr(bench, name)(*arguments)
        # The edge of a case: whatever a runtime throws becomes the case's reason.
        except Exception as error:  # noqa: BLE001
            connection.send((False, f"{type(error).__name__}: {error}"))
        else:
            connection.send((True, answer))


def measurement(opened: Opened, evidence: Mapping[str, Scalar], input_digest: str) -> Measurement:
    """Return what is known of a session beside its timing."""
    return Measurement(
        build_s=opened.build_s,
        artifact_bytes=opened.artifact_bytes,
        evidence=evidence,
        input_digest=input_digest,
    )
