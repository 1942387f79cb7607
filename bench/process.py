"""The parent's handle of a worker process: ask, wait, and tell a failure from a death, a hang and a leak."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import psutil

from bench.job import Job
from bench.measure import stopwatch
from bench.records import Scalar
from bench.serve import serve
from bench.timetable import OTHER, Timetable

#: Seconds between two looks at a worker that is at work.
WATCH_S = 0.2
#: Share of the memory available at the start of a run that one worker may use unless told otherwise;
#: the rest is for the others and for what grows between two looks.
MEMORY_SHARE = 0.85
#: Folder of a container's own control group (version 2).
CONTROL_GROUP = Path("/sys/fs/cgroup")
#: Part of the timetable to which a call's time is booked; one that is not named here is a part of its own.
BOOKED_TO = {
    "open": "build",
    "reference": "quality",
    "score": "quality",
    "compare": "quality",
    "drift": "quality",
    "saturate": "build",
    "warm_up": "warm-up",
    "block": "measuring",
    "end_to_end": "measuring",
    "energy": "measuring",
    "gpu_times": "measuring",
    "flop_per_image": "ceilings",
    "evidence": OTHER,
    "proof": OTHER,
    "device_state": OTHER,
}


class WorkerError(RuntimeError):
    """A worker failed, died, hung or took too much; the message is the case's reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Oversight:
    """What a worker may take before it is killed, and where its time is booked.

    Attributes:
        stage_s: Longest wait for one answer: a build, a scoring, a warm-up, a block [s].
        memory_bytes: Largest resident set, pages shared with other processes included; memory of a
            GPU is not in it.
        timetable: Is told of the wall time of each call.
    """

    stage_s: float = 600.0
    memory_bytes: float = math.inf
    timetable: Timetable = field(default_factory=Timetable)


class Worker:
    """The parent's handle of a worker process; who makes it closes it."""

    def __init__(self, job: Job, oversight: Oversight | None = None) -> None:
        context = _process_context()
        self.job, self._oversight = job, oversight or Oversight()
        #: Why the process is no more, once a call has found out.
        self.ended = ""
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return int(self._process.pid or 0)

    def ask(self, name: str, *arguments: object, patience_s: float = math.inf) -> Any:  # each call has its own type
        """Call method *name* of the worker's `Bench` and return its answer.

        The wait ends after *patience_s* or the stage limit of the oversight, whichever is less.

        Raises:
            WorkerError: If the call failed, the process died or had ended before, no answer came in
                time, or it used too much memory.
        """
        if self.ended:
            raise WorkerError(self.ended)
        with self._oversight.timetable.spend(BOOKED_TO.get(name, name)):
            try:
                self._connection.send((name, arguments))
                self._watch(name, min(patience_s, self._oversight.stage_s))
                done, answer = self._connection.recv()
            except (EOFError, ConnectionError) as error:
                self.ended = f"the process died in {name}: {self._cause_of_death()}"
                raise WorkerError(self.ended) from error
        if not done:
            raise WorkerError(answer)
        return answer

    def restarted(self, settings: Mapping[str, Scalar] | None = None) -> Worker:
        """End this process and return the handle of a new one on the same job, with *settings* if they are given."""
        self.close()
        job = self.job if settings is None else replace(self.job, settings=settings)
        return Worker(job, self._oversight)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join(10)

    def close(self) -> None:
        """Hang up, and end the process if it does not end by itself."""
        self._connection.close()
        self._process.join(5)
        self.kill()

    def _watch(self, name: str, patience_s: float) -> None:
        """Return when an answer is there; kill the process if it takes too long or too much for it.

        The resident set is watched from here rather than limited with ``RLIMIT_AS``: that counts
        address space, of which CUDA and thread stacks reserve far more than they use.
        """
        elapsed, answered = stopwatch(), False
        while not answered:
            left_s = patience_s - elapsed()
            if left_s <= 0:
                self._end(f"hung: no answer to {name} within {patience_s:.3g} s; killed")
            answered = self._connection.poll(min(left_s, WATCH_S))
            # After an answer too: a leak of many short calls would never be seen.
            if (limit := self._oversight.memory_bytes) < self._resident_bytes():
                self._end(f"out of memory: used more than {limit / 2**30:.3g} GiB of memory in {name}; killed")

    def _end(self, reason: str) -> None:
        self.kill()
        self.ended = reason
        raise WorkerError(reason)

    def _resident_bytes(self) -> int:
        """Return the memory that the process holds; 0 once it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def _cause_of_death(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"{name} (out of memory?)" if name == "SIGKILL" else name
        return f"exit code {code}"


def default_memory_limit() -> float:
    """Return `MEMORY_SHARE` of the memory that is available now [B]."""
    return MEMORY_SHARE * available_memory()


def available_memory(group: Path = CONTROL_GROUP) -> float:
    """Return the memory that is available now, to this machine and to its container [B].

    Files that the system keeps in memory because there is room, and nobody has mapped, count as available:
    after an installation or a simulation they fill a container.

    Args:
        group: Folder of the container's control group.
    """
    available = float(psutil.virtual_memory().available)
    try:
        most, used, parts = (
            (group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        lines = dict(line.split() for line in parts.splitlines())
        files = int(lines["active_file"]) + int(lines["inactive_file"]) - int(lines["file_mapped"])
        available = min(available, float(most) - float(used) + max(0, files))  # float("max") is refused below
    except (OSError, ValueError, KeyError):  # no such group, or one without a limit
        pass
    return available


def _process_context() -> ForkServerContext | SpawnContext:
    """Return how processes are made: forks of a server that has imported torch and started no thread.

    That saves seconds a process against a fresh interpreter, which macOS and Windows get.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "bench.serve"])
    return context
