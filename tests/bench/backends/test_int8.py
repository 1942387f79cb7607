"""What int8 sessions say of themselves, on a network that is small; `test_contract` has the rest of the promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import onnx_session
from bench.backends import known_backends, openvino_runtime
from bench.parity import compare, run_through
from tests.bench.conftest import GivenImages, make_case
from tests.bench.test_qdq_graph import small_network

IMAGES = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backend", "variant"),
    [
        ("onnx", "default"),
        ("onnx", "mixed"),
        ("openvino", "default"),
        ("openvino", "mixed"),
        ("openvino", "mixed+bf16"),
    ],
)
def test_the_evidence_counts_what_ran_in_integers(backend: str, variant: str, workdir: Path) -> None:
    case = make_case(backend=backend, precision="int8", variant=variant)
    if reason := known_backends()[backend].probe("cpu").reason:
        pytest.skip(reason)
    network = small_network()
    network.calibration = GivenImages(IMAGES)
    with torch.inference_mode():
        exact = small_network()(IMAGES).numpy()

    with known_backends()[backend].prepare(network, case, workdir) as session:
        outputs = run_through(session, IMAGES, case)
        evidence = session.evidence()

    counts = {name: int(count) for name, _, count in (part.partition(":") for part in _split(evidence))}
    assert evidence["precision"] == "int8"
    abilities = torch.cpu.get_capabilities()
    if variant != "mixed+bf16" or abilities.get("avx512_bf16") or abilities.get("amx_bf16"):
        assert "fallback" not in evidence
        assert not {"mixed+bf16": {"f32"}}.get(variant, {"bf16"}) & counts.keys()
    # Four convolutions and a classifier; of the five, mixed may keep two.
    assert sum(counts.values()) == 4
    assert evidence["float_convolutions"] <= (0 if variant == "default" else 2)
    assert sum(counts.get(name, 0) for name in ("int8", "u8", "i8")) == 4 - evidence["float_convolutions"]
    assert {name for name in evidence if name.startswith("kept_")} == {
        "default": set(),
        "mixed": {"kept_fp32"},
        "mixed+bf16": {"kept_bf16"},
    }[variant]
    assert 0 < compare(outputs, exact, "int8").error < 0.05


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (Counter(u8=15, bf16=5), None),
        (Counter(u8=20), None),
        (Counter(u8=15, f32=5), "0 of the 5 convolutions kept ran in bf16"),
        (Counter(u8=14, bf16=6), "14 of 20 convolutions ran in int8, 15 are meant to"),
        (Counter(u8=5, bf16=15), "5 of 20 convolutions ran in int8, 15 are meant to"),
    ],
)
def test_what_was_to_be_kept_in_bf16_and_was_not_is_a_fallback(layers: Counter[str], said: str | None) -> None:
    facts = openvino_runtime.judge_convolutions(layers, "bf16", "int8", kept="bf16", floats=5)

    assert facts.get("fallback") == said


def _split(evidence: object) -> list[str]:
    return str(evidence["convolution_precisions"]).split()  # type: ignore[index]  # a mapping


@pytest.mark.parametrize(
    ("operations", "kept", "precision", "said"),
    [
        (Counter(QLinearConv=15, Conv=5), 5, "int8", None),
        (Counter(QLinearConv=2, Conv=2), 2, "int8", None),  # half of a small network, on purpose
        (Counter(), 0, "fp32", "0 of 0 convolutions ran in int8"),
        (Counter(QLinearConv=15, FusedConv=5), 4, "int8", "15 of 20 convolutions ran in int8, 16 are meant to"),
        (Counter(QLinearConv=19, Conv=1), 0, "int8", "19 of 20 convolutions ran in int8"),
        (Counter(QLinearConv=2, Conv=1, FusedConv=1), 0, "fp32", "2 of 4 convolutions ran in int8"),
        (Counter(Conv=20), 0, "fp32", "0 of 20 convolutions ran in int8"),
    ],
)
def test_onnx_runtime_that_ran_floats_is_a_fallback(
    operations: Counter[str], kept: int, precision: str, said: str | None
) -> None:
    facts = onnx_session.judge_convolutions(operations, kept)

    assert (facts["precision"], facts.get("fallback")) == (precision, said)


@pytest.mark.parametrize(
    ("layers", "hint", "asked", "floats", "precision", "said"),
    [
        (Counter(u8=15, f32=5), "f32", "int8", 5, "int8", None),
        (Counter(u8=2, f32=2), "f32", "int8", 2, "int8", None),
        (Counter(), "f32", "int8", 0, "fp32", "0 of 0 convolutions ran in int8"),
        (Counter(u8=15, f32=5), "f32", "int8", 0, "int8", "15 of 20 convolutions ran in int8"),
        (Counter(u8=15, bf16=5), "f32", "int8", 5, "int8", "0 of the 5 convolutions kept ran in f32"),
        (Counter(i8=20), "f32", "int8", 0, "int8", None),
        (Counter(u8=1, f32=3), "f32", "int8", 0, "fp32", "1 of 4 convolutions ran in int8"),
        (Counter(bf16=20), "bf16", "bf16", 0, "bf16", None),
        (Counter(bf16=19, f32=1), "bf16", "bf16", 0, "bf16", "19 of 20 convolutions ran in bf16"),
        (Counter(f32=20), "bf16", "bf16", 0, "bf16", "0 of 20 convolutions ran in bf16"),
        (Counter(), "f32", "fp32", 0, "fp32", "0 of 0 convolutions ran in fp32"),
    ],
)
def test_openvino_that_ran_something_else_is_a_fallback(
    layers: Counter[str], hint: str, asked: str, floats: int, precision: str, said: str | None
) -> None:
    facts = openvino_runtime.judge_convolutions(layers, hint, asked, floats=floats)

    assert (facts["precision"], facts.get("fallback")) == (precision, said)
