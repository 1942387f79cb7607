from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lensing_models.precision import set_tf32, without_tf32


def switches() -> dict[str, object]:
    """Return what each of torch's switches says; torch raises where they contradict each other."""
    cudnn = torch.backends.cudnn
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": cudnn.allow_tf32,
        "new": [part.fp32_precision for part in (torch.backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn)],
    }


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    with without_tf32("cuda"):
        yield


@pytest.mark.parametrize("steps", [(True,), (False,), (True, False), (False, True)])
def test_old_and_new_switches_say_the_same(steps: tuple[bool, ...]) -> None:
    for allowed in steps:
        set_tf32("cuda", allowed)

    last = steps[-1]
    assert switches() == {
        "float32_matmul_precision": "high" if last else "highest",
        "matmul": last,
        "cudnn": last,
        "new": ["tf32" if last else "ieee"] * 4,
    }


@pytest.mark.parametrize("allowed", [True, False])
def test_what_was_set_before_is_put_back(allowed: bool) -> None:
    set_tf32("cuda", allowed)
    before = switches()

    with without_tf32("cuda"):
        assert switches()["cudnn"] is False

    assert switches() == before


def test_on_a_cpu_nothing_is_set() -> None:
    before = switches()

    set_tf32("cpu", allowed=True)
    with without_tf32("cpu"):
        pass

    assert switches() == before
