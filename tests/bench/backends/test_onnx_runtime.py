"""Threads of ONNX Runtime on a CPU, whose callers compute too."""

from pathlib import Path

import pytest

from bench.backends import known_backends
from lensing_models.registry import find_architecture, find_task
from tests.bench.conftest import make_case


@pytest.mark.parametrize(("threads", "slots", "pool"), [(4, 1, 4), (4, 2, 3), (2, 2, 1)])
def test_callers_and_pool_together_are_the_threads_of_the_case(
    tmp_path: Path, threads: int, slots: int, pool: int
) -> None:
    network = find_architecture("mobilenetv3_small").build(find_task("substructure"))
    case = make_case(backend="onnx", precision="fp32", threads=threads, batch_size=1)

    with known_backends()["onnx"].prepare(network, case, tmp_path, slots) as session:
        (runtime,) = session._sessions

        assert runtime.get_session_options().intra_op_num_threads == pool
        assert session.evidence()["threads"] == threads
