"""The inside of a worker process, one network, backend and precision: open, score, warm up, time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.answer import Opened, Scored
from bench.control import CONTROL
from bench.inputs import Rotation
from bench.job import Job, load_network, timed_images
from bench.knob import apply_settings, describe_settings
from bench.machine_facts import Energy
from bench.measure import Clock, stopwatch
from bench.memory import PeakMeter
from bench.records import BUILD, Parity, Scalar
from bench.saturate import IN_FLIGHT, Saturation
from bench.scored import KEPT

if TYPE_CHECKING:
    from bench.arrival import Outcome
    from bench.backends.base import Backend, Session
    from bench.ceiling import Size
    from bench.device_state import Reading
    from bench.drift_facts import Drift
    from bench.parity import Outputs
    from lensing_models.data.store import Store


class Bench:
    """The inside of a worker process: one session at a time."""

    def __init__(self, job: Job) -> None:
        self._job, self._images = job, timed_images(job)
        self._stack = ExitStack()
        self._session: Session | None = None
        self._opened: Opened | None = None
        self._clock: Clock | Saturation | None = None
        self._input_digest = ""
        self._case = job.case
        self._backend: Backend = self._find_backend()

    def open(self, batch_size: int, threads: int, compared: int) -> Opened:
        """Build the session for *batch_size* and *threads*; compare its outputs for *compared* test images.

        They are held against the reference and against those of this worker's scored session.
        """
        import torch

        from bench.parity import run_through

        asked = replace(self._job.case, batch_size=batch_size, threads=threads)
        self._backend, self._case = apply_settings(self._find_backend(), asked, self._job.settings)
        torch.set_num_threads(self._case.threads)
        outputs, parity, failure = None, None, ""
        if self._case.device == "cuda":
            # The context, half a gigabyte, is torch's, and starting CUDA no part of loading a network.
            torch.zeros(1, device="cuda")
            torch.cuda.synchronize()
        with PeakMeter(self._case.device) as memory:
            session, prepare_s = self._prepare(slots=1)
            first_inference_s = Clock(session, [self._inputs().buffer(0)], self._job.plan).call()
            if compared:
                outputs = run_through(session, self._images[:compared], self._case)
        if outputs is not None:
            parity, failure = self._hold_against_reference(outputs)
            failure = failure or self._disagreement(outputs)
        self._opened = Opened(
            prepare_s=prepare_s,
            artifact_bytes=session.artifact_bytes,
            parity=parity,
            failure=failure,
            artifact_cached=session.artifact_cached,
            first_inference_s=first_inference_s,
            host=memory.host,
            gpu=memory.gpu,
        )
        return self._opened

    def saturate(self, compared: int) -> str:
        """Build the session of the open case anew for `IN_FLIGHT` slots, which are what is timed from now on.

        Returns:
            How its outputs for *compared* test images contradict the scored session; empty if they do not.
        """
        import torch

        from bench.parity import run_through

        # torch gives each caller so many threads; with other runtimes all callers share them.
        torch.set_num_threads(max(1, self._case.threads // IN_FLIGHT))
        session, _ = self._prepare(slots=IN_FLIGHT)
        answers = [run_through(session, self._images[:compared], self._case, slot) for slot in range(IN_FLIGHT)]
        failure = next(filter(None, map(self._disagreement, answers)), "")
        self._clock = self._stack.enter_context(Saturation(session, self._inputs().buffers(), self._job.plan))
        return failure

    def end_to_end(self, calls: int, most_s: float) -> tuple[tuple[float, ...], ...]:
        """Return the samples of each stage and of the whole [s]; see `bench.end_to_end.time_stages`."""
        from bench.end_to_end import time_stages

        store = self._open_store()
        test = store.indices("test")
        batches = [store.stored(test[rows.numpy()]) for rows in self._inputs().rows()]
        return time_stages(self._open_session(), store, batches, self._case.device, calls=calls, most_s=most_s)

    def gpu_times(self, calls: int, most_s: float) -> tuple[float, ...]:
        """Return the time of the GPU for single requests [s]; see `bench.gpu_time.time_on_gpu`."""
        from bench.gpu_time import time_on_gpu

        return time_on_gpu(self._open_session(), self._inputs().buffers(), calls=calls, most_s=most_s)

    def score(self) -> Scored:
        """Run the whole test split through the session and score its outputs.

        They are kept in the job's file, for `compare` and `drift`.
        """
        import numpy as np

        from bench.drift import measure_quality
        from bench.parity import explain_not_finite, run_through
        from lensing_models.metrics import score
        from lensing_models.registry import find_task

        outputs = run_through(self._open_session(), self._images, self._case)
        np.save(self._job.outputs, outputs)
        if not np.isfinite(outputs).all():
            return Scored(failure=explain_not_finite(outputs))
        labels, task = self._open_store().labels("test"), find_task(self._case.task)
        assert self._opened is not None
        return Scored(
            quality=score(task, outputs, labels),
            intervals=measure_quality(task, outputs, labels),
            images=len(outputs),
            build_s=self._opened.prepare_s,
            artifact_cached=self._opened.artifact_cached,
            # Not its threads: it has one, and that is no matter for what it answers.
            evidence={name: fact for name, fact in self._open_session().evidence().items() if name in KEPT},
        )

    def compare(self) -> tuple[Parity | None, str]:
        """Return the parity of what was scored, and why it is not passed or an empty string."""
        import numpy as np

        from bench.parity import PARITY_IMAGES

        return self._hold_against_reference(np.load(self._job.outputs)[:PARITY_IMAGES])

    def drift(self) -> Drift | None:
        """Return how what was scored differs in worth from the reference; None where there is no reference."""
        import numpy as np

        from bench.drift import measure_drift
        from lensing_models.registry import find_task

        if self._job.reference is None:
            return None
        outputs, reference = np.load(self._job.outputs), np.load(self._job.reference)
        return measure_drift(find_task(self._case.task), outputs, reference, self._open_store().labels("test"))

    def warm_up(self) -> tuple[int, bool]:
        """Call until the times settle, and on CUDA the clocks; see `Clock.warm_up`."""
        from bench.device_state import open_monitor

        clock = self._open_clock()
        if isinstance(clock, Saturation):  # its session's clocks are warm: the latency was measured just before
            return clock.warm_up()
        return clock.warm_up(open_monitor().sm_clock_mhz if self._case.device == "cuda" else None)

    def block(self) -> tuple[float, ...]:
        """Return the samples of one block [s]."""
        return self._open_clock().block()

    def device_state(self) -> Reading:
        """Return what the GPU does now."""
        from bench.device_state import open_monitor

        return open_monitor().read()

    def energy(self, window_s: float) -> Energy:
        """Return the energy of calls back to back over *window_s* [s], or why there is none."""
        from bench.energy import measure_energy

        return measure_energy(self._latency_clock(), self._case.device, self._case.batch_size, window_s)

    def ceiling(self, kind: str, size: Size | None) -> float:
        """Return the most that this device does of *kind* a second; no session is needed."""
        from bench.ceiling import measure_ceiling

        return measure_ceiling(kind, self._case.device, self._case.threads, size)

    def flop_per_image(self) -> float:
        """Return the floating-point operations of the job's network for one image."""
        from bench.arithmetic import count_flop

        return count_flop(load_network(self._job), self._images[:1])

    def scenario(self, name: str, settings: Mapping[str, float], logs: Path) -> Outcome:
        """Return what scenario *name* makes of the open session; see `bench.scenario`."""
        from bench.arrival import Arrivals

        arrivals = Arrivals(
            session=self._open_session(), case=self._case, clock=self._latency_clock(), images=self._images, logs=logs
        )
        return arrivals.run(name, settings)

    def evidence(self) -> tuple[Mapping[str, Scalar], str]:
        """Return the session's evidence and the digest of the inputs it was timed on, as they are afterwards."""
        facts = self.proof()
        chosen = {name: value for name, value in self._job.settings.items() if name != BUILD}
        facts |= {"settings": describe_settings(chosen)} if chosen else {}
        facts |= {BUILD: self._job.settings[BUILD]} if BUILD in self._job.settings else {}
        digest = self._latency_clock().input_digest()
        if digest != self._input_digest:
            facts.setdefault("fallback", "wrote into the images that it was given")
        return facts, digest

    def proof(self) -> dict[str, Scalar]:
        """Return the session's evidence.

        A runtime that says it used another number of threads than the case's did something else. With several
        requests in flight, torch tells how many each caller has, the others how many all have together.
        """
        facts = dict(self._open_session().evidence())
        allowed = {None, self._case.threads}
        if isinstance(self._clock, Saturation):
            allowed.add(max(1, self._case.threads // IN_FLIGHT))
        if facts.get("threads") not in allowed:
            facts.setdefault("fallback", f"ran with {facts['threads']} threads, not {self._case.threads}")
        return facts

    def _open_store(self) -> Store:
        from lensing_models.data.store import open_store

        assert self._job.store is not None, "an anchor is not scored"
        return open_store(self._job.store)

    def _find_backend(self) -> Backend:
        """Return the backend of the case with its defaults."""
        from bench.backends import known_backends

        name = self._job.case.backend
        return CONTROL if name == CONTROL.name else known_backends()[name]

    def _prepare(self, slots: int) -> tuple[Session, float]:
        """Free what is open, and return the session of the case for *slots* requests and what `prepare` took [s]."""
        from bench.cuda_graph import prepare_session

        self._stack.close()
        self._stack, self._session, self._clock = ExitStack(), None, None
        network = load_network(self._job)
        elapsed = stopwatch()
        prepared = prepare_session(self._backend, network, self._case, self._job.workdir, slots)
        self._session = self._stack.enter_context(prepared)
        return self._session, elapsed()

    def _hold_against_reference(self, outputs: Outputs) -> tuple[Parity | None, str]:
        from bench.parity import hold_against

        return hold_against(self._job.reference, outputs, self._case.precision)

    def _disagreement(self, outputs: Outputs) -> str:
        from bench.parity import contradict

        return contradict(self._job.outputs, outputs, self._job.reference)

    def _inputs(self) -> Rotation:
        return Rotation(self._images, self._case)

    def _open_clock(self) -> Clock | Saturation:
        """Return what times the open session; made late, for a large batch may have no room for the buffers."""
        if self._clock is None:
            self._clock = Clock(self._open_session(), self._inputs().buffers(), self._job.plan)
            self._input_digest = self._clock.input_digest()
        return self._clock

    def _latency_clock(self) -> Clock:
        """Return what times the open session one request at a time."""
        clock = self._open_clock()
        if not isinstance(clock, Clock):
            raise RuntimeError("the open session is made for several requests at once")
        return clock

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session is open")
        return self._session
