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
from bench.qdq_graph import FLAT, SILU_FLAT, Quantizer, Scheme, depthwise_layers
from bench.qdq_pairs import LAYERS, count_float_convolutions
from bench.records import DEFAULT, Case, Scalar

if TYPE_CHECKING:
    from lensing_models.network import LensNetwork

#: The runtime variant that keeps in fp32 the layers whose quantisation costs most.
MIXED = "mixed"
#: Of the evidence: how many convolutions of the file stay float, on purpose.
FLOATS = "float_convolutions"
#: Part of every file's key; raised when the way of quantising changes.
QUANTIZE_VERSION = 3
#: What of a processor decides how it multiplies 8-bit integers.
INTEGER_ABILITIES = (
    "architecture",
    "avx2",
    "avx512_bw",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "avx_vnni_int8",
    "i8mm",
    "dot",
)
#: Every so many of the calibration images sets no ranges: the sweep of `bench.sensitivity` judges by them.
HELD_OUT = 3
#: One image has no spread to hold an error against.
FEWEST_HELD_OUT = 2
FEWEST_IMAGES = HELD_OUT * (FEWEST_HELD_OUT - 1) + 2
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


def quantized_file(
    network: LensNetwork, workdir: Path, scheme: Scheme, case: Case, *, keep_depthwise: bool = False
) -> Quantized:
    """Return the checked 8-bit file of *network*, by its calibration images; those of a layer `MIXED` keeps stay fp32.

    Args:
        network: In evaluation mode, fp32, on the CPU, with its `calibration`.
        workdir: Folder of derived files; made if missing.
        scheme: Which numbers become 8 bits.
        case: Its variant is looked at.
        keep_depthwise: Whether convolutions of each channel by itself stay fp32, too.

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

    if keep_depthwise:
        kept = {*kept, *depthwise_layers(onnx_file(network, workdir), scheme.operations)}

    def write(path: Path) -> None:
        calibrate().save(path, keep=kept)

    path = cached_file(network, workdir, f"{recipe} keep {sorted(kept)}", ".int8.onnx", write)
    return Quantized(path=path, facts={**facts, FLOATS: count_float_convolutions(path)})


def describe(scheme: Scheme, digest: str) -> str:
    """Return all that decides on an 8-bit file beside the network and the layers kept.

    The processor is part of it: what is put back of the mean, and which layers are kept, is by 8-bit kernels that
    ran here, and without VNNI these may saturate.
    """
    import torch

    version = importlib.metadata.version
    maker = next(name for name in ("onnxruntime-gpu", "onnxruntime") if _is_installed(name))
    recipe = json.dumps(dataclasses.asdict(scheme), sort_keys=True)
    calibration = f"calibration {digest} {HELD_OUT} equalized {POWER} {FLOOR} flat {dict(FLAT)} {SILU_FLAT}"
    abilities = {name: torch.cpu.get_capabilities().get(name) for name in INTEGER_ABILITIES}
    return f"int8 {QUANTIZE_VERSION} {recipe} {calibration} {maker} {version(maker)} {abilities}"


def explain_floats(integer: int, total: int, kept: int) -> str:
    """Return how more convolutions than the *kept* ones ran in float, or an empty text.

    Args:
        integer: Those that ran in integers.
        total: All of them.
        kept: Those that the file keeps in float.
    """
    if total and total - integer <= kept:
        return ""
    meant = f", {total - kept} are meant to" if kept else ""
    return f"{integer} of {total} convolutions ran in int8{meant}"


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
    is_held_out = np.arange(len(images)) % HELD_OUT == 1
    if np.count_nonzero(is_held_out) < FEWEST_HELD_OUT:
        raise ValueError(f"int8 needs {FEWEST_IMAGES} training images or more to be calibrated, not {len(images)}")
    return images[~is_held_out], images[is_held_out]
