"""The parent's handle of a worker process: ask, wait, and tell a failure from a death from a hang."""

from __future__ import annotations

import signal
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from bench.worker import Job, serve

#: Seconds without an answer after which a worker is taken for hung.
PATIENCE_S = 900.0


class WorkerError(RuntimeError):
    """A worker failed, died or hung; the message is the case's reason."""


class Worker:
    """The parent's handle of a worker process; a context manager that ends it."""

    def __init__(self, job: Job) -> None:
        context = _process_context()
        self.job = job
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return int(self._process.pid or 0)

    def ask(self, name: str, *arguments: object, patience_s: float = PATIENCE_S) -> Any:  # each call has its own type
        """Call method *name* of the worker's `Bench` and return its answer.

        Raises:
            WorkerError: If the call failed, the process died, or no answer came in time.
        """
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(patience_s):
                self.kill()
                raise WorkerError(f"hung: no answer to {name} within {patience_s:.0f} s; killed")
            done, answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerError(f"the process died in {name}: {self._cause_of_death()}") from error
        if not done:
            raise WorkerError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join(10)

    def close(self) -> None:
        """Hang up, and end the process if it does not end by itself."""
        self._connection.close()
        self._process.join(5)
        self.kill()

    def _cause_of_death(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"{name} (out of memory?)" if name == "SIGKILL" else name
        return f"exit code {code}"


def _process_context() -> ForkServerContext | SpawnContext:
    """Return how processes are made: forks of a server that has imported torch and started no thread.

    That saves seconds a process against a fresh interpreter, which macOS and Windows get.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "bench.worker"])
    return context
