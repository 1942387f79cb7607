"""The loop of a worker process: answer what the parent asks until it hangs up."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

from bench.job import Job, write_reference
from bench.memory import explain
from bench.onednn import settle_environment
from bench.worker import Bench


def serve(connection: Connection, job: Job) -> None:
    """Answer the parent's calls until it hangs up; the entry point of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    settle_environment()  # of the reference, too, which would agree with what it should catch
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
            connection.send((False, explain(error)))
        else:
            connection.send((True, answer))
