"""Network -> 8-bit ONNX file, calibrated by images of the training split; cached by all that it was made from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.equalize import FLOOR, POWER
from bench.onnx_run import Images
from bench.qdq_graph import LAYERS, Quantizer, Scheme
from bench.records import DEFAULT, Case, Scalar

if TYPE_CHECKING:
    from lensing_models.network import LensNetwork

#: The runtime variant that keeps in fp32 the layers whose quantisation costs most.
MIXED = "mixed"
#: Part of every file's key; raised when the way of quantising changes.
QUANTIZE_VERSION = 2
#: Every so many of the calibration images sets no ranges: the sweep of `bench.sensitivity` judges by them.
HELD_OUT = 3
_CPU = ("Conv", "Gemm", "Add", "Relu", "Clip", "MaxPool", "GlobalAveragePool", "Flatten", "Reshape")
#: ONNX Runtime's QLinearConv gives 8 bits; the classifier's outputs are answers, and stay float.
ONNX_RUNTIME = Scheme(name="u8", operations=_CPU, float_outputs=("Gemm",))
#: OpenVINO's convolutions apply the activation to 32 bits, so nothing is rounded in between.
OPENVINO = Scheme(name="u8 fused", operations=_CPU, float_outputs=("Gemm",), fuses_activations=True)
#: TensorRT's parser takes no zero points and no int32 biases ("Working with Quantized Types", 10.13).
TENSORRT = Scheme(name="s8", is_signed=True, operations=LAYERS, float_outputs=LAYERS, weight_pairs=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """An 8-bit file, and what there is to say about its making, for the evidence."""

    path: Path
    facts: Mapping[str, Scalar]


def variants_of(case: Case) -> tuple[str, ...]:
    """Return the runtime variants of a cell: int8 has `MIXED` too.

    It is planned whether plain int8 turns out worse or not: a plan cannot know.
    """
    return (DEFAULT, MIXED) if case.precision == "int8" else (DEFAULT,)


def quantized_file(network: LensNetwork, workdir: Path, scheme: Scheme, case: Case) -> Quantized:
    """Return the checked 8-bit file of *network*, by its calibration images; those of a layer `MIXED` keeps stay fp32.

    Args:
        network: In evaluation mode, fp32, on the CPU, with its `calibration`.
        workdir: Folder of derived files; made if missing.
        scheme: Which numbers become 8 bits.
        case: Its variant is looked at.

    Raises:
        RuntimeError: If the network names no calibration images, or the export fails.
        ValueError: If there are too few.
    """
    from bench.export import cached_file, onnx_file

    if network.calibration is None:
        raise RuntimeError("int8 is calibrated by images of the training split, and the network names none")
    recipe = describe(scheme, network.calibration.digest)

    @cache
    def calibrate() -> Quantizer:
        return Quantizer(onnx_file(network, workdir), scheme, calibration_images(network)[0])

    facts: dict[str, Scalar] = {"scheme": scheme.name, "calibration": network.calibration.digest[:12]}
    kept: Collection[str] = ()
    if case.has_variant(MIXED):
        from bench.sensitivity import find_sweep

        sweep, file = find_sweep(network, workdir, recipe, calibrate)
        kept = sweep.kept
        facts |= {**sweep.facts(), "sweep_file": file.name}

    def write(path: Path) -> None:
        calibrate().save(path, keep=kept)

    path = cached_file(network, workdir, f"{recipe} keep {sorted(kept)}", ".int8.onnx", write)
    return Quantized(path=path, facts=facts)


def describe(scheme: Scheme, digest: str) -> str:
    """Return all that decides on an 8-bit file beside the network and the layers kept."""
    version = importlib.metadata.version
    maker = next(name for name in ("onnxruntime-gpu", "onnxruntime") if _is_installed(name))
    recipe = json.dumps(dataclasses.asdict(scheme), sort_keys=True)
    calibration = f"calibration {digest} {HELD_OUT} equalized {POWER} {FLOOR}"
    return f"int8 {QUANTIZE_VERSION} {recipe} {calibration} {maker} {version(maker)}"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def calibration_images(network: LensNetwork) -> tuple[Images, Images]:
    """Return the images that set the ranges, and those held out to judge by, each (N, C, H, W) in [0, 1].

    Raises:
        ValueError: If there are too few for both.
    """
    assert network.calibration is not None
    images = network.calibration.images().numpy()
    if len(images) < 2:
        raise ValueError(f"int8 needs 2 training images or more to be calibrated, not {len(images)}")
    is_held_out = np.arange(len(images)) % HELD_OUT == 1
    return images[~is_held_out], images[is_held_out]
