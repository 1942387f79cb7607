"""TorchScript's variant `optimized`, and what torch says of TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.backends.torchscript import BACKEND
from bench.parity import TOLERANCE, compare, compute_reference, run_through
from lensing_models.network import LensNetwork
from tests.bench.conftest import lens_like_images, make_case

Build = Callable[[str, str], LensNetwork]
CASE = make_case(backend="torchscript", variant="optimized")


@pytest.mark.parametrize("architecture", ["mobilenetv3_small", "resnet18"])
def test_the_optimised_network_answers_as_the_plain_one(architecture: str, build: Build, workdir: Path) -> None:
    case = replace(CASE, architecture=architecture)
    images = lens_like_images(4)
    layers = build(architecture, "substructure").modules()
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in layers)
    reference = compute_reference(build(architecture, "substructure"), images, "cpu")

    with BACKEND.prepare(build(architecture, "substructure"), case, workdir) as session:
        parity = compare(run_through(session, images, case), reference, "fp32")
        evidence = session.evidence()

    assert parity.error <= TOLERANCE
    assert evidence["precision"] == "fp32"
    assert evidence["mkldnn_convolutions"] == convolutions


def test_both_variants_share_one_file(build: Build, workdir: Path) -> None:
    sizes = set()

    for case in (CASE, replace(CASE, variant="default")):
        with BACKEND.prepare(build(CASE.architecture, CASE.task), case, workdir) as session:
            sizes.add((session.artifact_bytes, "mkldnn_convolutions" in session.evidence()))

    assert len({size for size, _ in sizes}) == 1
    assert len(sizes) == 2


def test_it_is_a_variant_of_fp32_on_a_cpu_alone() -> None:
    has = {
        (device, precision): "optimized" in BACKEND.variants_of(replace(CASE, device=device, precision=precision))
        for device, precisions in BACKEND.precisions.items()
        for precision in precisions
    }

    assert [cell for cell, found in has.items() if found] == [("cpu", "fp32")]


def test_the_evidence_repeats_that_torch_calls_it_deprecated(build: Build, workdir: Path) -> None:
    with BACKEND.prepare(build(CASE.architecture, CASE.task), CASE, workdir) as session:
        said = str(session.evidence()["deprecated"])

    documented = str(torch.jit.optimize_for_inference.__doc__)
    assert "since torch 2.5" in said
    assert ".. deprecated:: 2.5" in documented
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.trace(torch.nn.Identity(), torch.zeros(1))
