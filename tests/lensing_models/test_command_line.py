"""The edge of every command: how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

PARENT = """
import subprocess, sys
from lensing_models.command_line import run_main

def main(argv):
    subprocess.run([sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(300)"])
    return 0

run_main(main)
"""


def test_sigterm_ends_the_processes_of_a_command_too(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (child,) = psutil.Process(process.pid).children()

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 143
    assert errors == "terminated\n"
    gone, _ = psutil.wait_procs([child], timeout=30)
    assert gone == [child]
