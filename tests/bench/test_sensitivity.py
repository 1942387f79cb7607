from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.export import onnx_file
from bench.qdq_graph import Quantizer
from bench.quantize import ONNX_RUNTIME
from bench.sensitivity import MOST_GROUPS, TARGET, Sweep, choose_kept, group_layers, make_sweep, output_error
from tests.bench.test_qdq_graph import small_network


def test_the_error_is_relative_to_the_spread_of_the_outputs() -> None:
    exact = np.array([[10.0], [14.0]], dtype=np.float32)

    # Around their mean the exact outputs are -2 and 2; they differ by 1 and by -1.
    assert output_error(exact + np.array([[1.0], [-1.0]], dtype=np.float32), exact) == pytest.approx(0.5)
    # What all answers have in common is put back.
    assert output_error(exact + 1, exact) == 0.0


def test_the_layer_that_8_bits_spoil_is_found_and_kept(workdir: Path) -> None:
    network = small_network()
    with torch.no_grad():
        # One channel a thousand times the others: what goes into the next layers has no digits left for them.
        # Behind the curve of its activation channels cannot be made alike.
        network.backbone.point.weight[0] *= 1000  # type: ignore[union-attr,operator,index]  # a Conv2d
        network.backbone.classifier.weight[:, 0] /= 1000  # type: ignore[union-attr,operator,index]  # a Linear
    images = np.random.default_rng(0).random((16, 1, 12, 12), np.float32)
    quantizer = Quantizer(onnx_file(network, workdir), ONNX_RUNTIME, images[:8])

    sweep = make_sweep(quantizer, images[8:])

    worst = next(iter(sweep.alone))
    assert worst in ("point", "classifier")
    assert worst in sweep.kept
    assert sweep.mixed < sweep.plain
    assert list(sweep.alone.values()) == sorted(sweep.alone.values(), reverse=True)
    assert set(sweep.alone) == {"stem", "depthwise", "gate", "point", "classifier"}


def test_a_large_network_is_swept_by_blocks_on_fewer_images(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MOST_GROUPS": 4, "FEWER_IMAGES": 2, "TRIAL_IMAGES": 6}.items():
        monkeypatch.setattr(f"bench.sensitivity.{name}", value)
    images = np.random.default_rng(0).random((16, 1, 12, 12), np.float32)

    sweep = make_sweep(Quantizer(onnx_file(small_network(), workdir), ONNX_RUNTIME, images[:8]), images[8:])

    assert sweep.images == 6
    assert sweep.layers == 5
    assert 0 < sweep.plain < 1


def test_no_more_layers_are_kept_than_it_takes() -> None:
    ranked = [[name] for name in "abcdefghij"]
    left = {0: 0.8, 1: 0.4, 2: 0.1, 3: 0.9 * TARGET}

    kept, error = choose_kept(ranked, 10, lambda keep: left.get(len(keep), 0.0))

    assert (kept, error) == (("a", "b", "c"), 0.9 * TARGET)


def test_nothing_is_kept_where_int8_costs_little() -> None:
    assert choose_kept([["a"], ["b"], ["c"]], 3, lambda keep: 0.5 * TARGET) == ((), 0.5 * TARGET)


def test_most_layers_stay_int8_however_large_the_error() -> None:
    ranked = [["a", "b", "c"], ["d"], ["e", "f"], ["g", "h", "i", "j"]]

    kept, error = choose_kept(ranked, 10, lambda keep: 1 / (1 + len(keep)))

    # Four of ten may be kept: with e and f it would be six.
    assert (kept, error) == (("a", "b", "c", "d"), 0.2)


def test_the_best_trial_is_taken_where_more_is_not_better() -> None:
    ranked = [[name] for name in "abcdefghij"]
    left = {0: 0.6, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}

    assert choose_kept(ranked, 10, lambda keep: left[len(keep)]) == (("a",), 0.2)


def test_few_layers_are_swept_one_by_one_and_many_by_block() -> None:
    block = ["blocks.4.2.conv_pw", "blocks.4.2.se.conv_reduce", "conv_stem"]
    many = [*block, *(f"blocks.5.{index}.conv_dw" for index in range(MOST_GROUPS))]

    assert list(group_layers(block)) == block
    assert group_layers(many)["blocks.4.2"] == block[:2]
    assert group_layers(many)["conv_stem"] == ["conv_stem"]


def test_the_evidence_names_a_block_that_is_kept_as_one() -> None:
    sweep = Sweep(
        images=8,
        layers=9,
        plain=0.5,
        alone={"blocks.1.1": 0.4, "conv_stem": 0.2, "blocks.1.11": 0.1},
        kept=("blocks.1.1.conv_pw", "blocks.1.1.conv_dw", "conv_stem"),
        mixed=0.02,
    )

    assert sweep.facts() == {
        "kept_fp32": "3 of 9 layers: blocks.1.1 conv_stem",
        "sweep": "error 0.500 plain, 0.020 with these in fp32, on 8 training images",
    }
