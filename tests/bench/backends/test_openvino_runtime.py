"""OpenVINO in a process that does other things too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

TWO_SESSIONS_AND_A_SIGNAL = """
import os, pathlib, signal, sys
from bench.backends.openvino_runtime import BACKEND
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import make_case

handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
def prepare():
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    return BACKEND.prepare(network, make_case(backend="openvino"), pathlib.Path(sys.argv[1]))
first = prepare()
second = prepare()
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
print(len(handled))
"""


def test_a_signal_is_survived_when_sessions_end_in_the_order_of_their_making(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", TWO_SESSIONS_AND_A_SIGNAL, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (answer.returncode, answer.stdout.strip()) == (0, "1")
