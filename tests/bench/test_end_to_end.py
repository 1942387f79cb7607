from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.backends.base import LocalSession
from bench.end_to_end import FEWEST_CALLS, make_steps, time_stages
from bench.experiment import STAGES
from bench.job import load_test_images
from bench.measure import rest, time_chain
from lensing_models.data.simulate import simulate_dataset
from lensing_models.data.store import Store
from lensing_models.preset import Split
from lensing_models.registry import find_task


class Brightest(LocalSession):
    """Answers with the mean of each image, after a rest, out of one buffer that it uses again."""

    def __init__(self, rest_s: float = 0.0) -> None:
        self._rest_s, self._buffer = rest_s, torch.empty(0)

    def infer(self, images: torch.Tensor, slot: int = 0) -> torch.Tensor:
        rest(self._rest_s)
        answers = images.mean(dim=(1, 2, 3))[:, None]
        self._buffer = self._buffer.resize_(answers.shape).copy_(answers)
        return self._buffer

    def evidence(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("stages") / "data"
    return simulate_dataset(find_task("substructure"), Split(train=3, validation=3, test=6), folder)


def test_what_comes_out_is_what_the_network_says_of_the_stored_images(store: Store) -> None:
    value: object = store.stored(store.indices("test"))

    for step in make_steps(Brightest(), store, "cpu"):
        value = step(value)

    expected = load_test_images(store.folder).mean(dim=(1, 2, 3))[:, None].numpy()
    assert isinstance(value, np.ndarray)
    assert value.tolist() == expected.tolist()


def test_answers_outlive_the_next_call(store: Store) -> None:
    steps = make_steps(Brightest(), store, "cpu")
    answers = steps[-1](steps[-2](torch.zeros(1, 1, 4, 4)))

    steps[-2](torch.ones(1, 1, 4, 4))

    assert answers.tolist() == [[0.0]]


def test_each_stage_has_a_sample_a_call(store: Store) -> None:
    batches = [store.stored(store.indices("test")[:2])]

    columns = time_stages(Brightest(), store, batches, "cpu", calls=5, most_s=60.0)

    assert [len(samples) for samples in columns] == [5] * len(STAGES)


def test_a_slow_case_makes_the_fewest_calls(store: Store) -> None:
    batches = [store.stored(store.indices("test")[:2])]

    columns = time_stages(Brightest(0.01), store, batches, "cpu", calls=500, most_s=1e-9)

    assert len(columns[0]) == FEWEST_CALLS


def test_a_known_rest_is_found_in_its_stage_and_in_the_whole(store: Store) -> None:
    batches = [store.stored(store.indices("test")[:2])]

    columns = time_stages(Brightest(0.02), store, batches, "cpu", calls=3, most_s=60.0)

    samples = dict(zip(STAGES, columns, strict=True))
    # A rest is never shorter than it should be, so these bounds hold on any machine.
    assert min(samples["compute_s"]) >= 0.02
    assert min(samples["whole_s"]) >= 0.02


def test_the_whole_of_a_call_is_the_sum_of_its_stages() -> None:
    *stages, whole = time_chain([lambda value: value, lambda value: rest(0.001)], 0)

    assert whole == pytest.approx(sum(stages), rel=1e-9)


def test_each_step_gets_what_the_last_returned() -> None:
    seen: list[object] = []

    time_chain([lambda value: value + 1, lambda value: value * 10, seen.append], 1)

    assert seen == [20]


def test_decoded_counts_are_in_single_precision(store: Store) -> None:
    assert store.decode(store.stored(store.indices("test")[:1])).dtype == np.float32
