"""What an engine runs, read from the JSON of TensorRT's inspector."""

from __future__ import annotations

import json
import re
from collections import Counter

from bench.quantize import explain_floats

# How the inspector spells a type: TensorRT 11 `Half`, TensorRT 10 `Half` or `Channel major FP16 format ...`.
SPELLINGS = (
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half"),
    ("fp8", r"fp8"),
    ("int8", r"\bint8"),
    ("fp32", r"fp32|float"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
)


def count_layers(report: str, kind: str = "") -> Counter[str]:
    """Return how many layers read each type, most frequent first, from the inspector's JSON.

    A layer counts under the type that it reads: what converts from float32 to float16 on the way in
    is no float16 arithmetic. A layer without inputs or of unknown type does not count.

    Args:
        report: The inspector's JSON.
        kind: What must occur in a layer's ``LayerType``, ``ParameterType`` or ``ConvParameterType`` (of a convolution
            with what is fused to it), in small letters.
    """
    layers = [layer for layer in json.loads(report).get("Layers", []) if isinstance(layer, dict)]
    kinds = [f"{one.get('LayerType')} {one.get('ParameterType')} {one.get('ConvParameterType')}" for one in layers]
    chosen = [layer for layer, spelled in zip(layers, kinds, strict=True) if kind in spelled.lower()]
    tensors = [layer["Inputs"][0] for layer in chosen if layer.get("Inputs")]
    # TensorRT 11 split the field in two (migration guide 10.x to 11.x, IEngineInspector).
    spelled = [tensor.get("DataType") or tensor.get("Format/Datatype", "") for tensor in tensors]
    return Counter(name for name in map(layer_type, spelled) if name)


def count_tf32(report: str) -> tuple[int, int]:
    """Return how many layers run a kernel whose name says TF32, and how many name one, from the inspector's JSON."""
    layers = [layer for layer in json.loads(report).get("Layers", []) if isinstance(layer, dict)]
    names = [f"{layer['TacticName']}" for layer in layers if layer.get("TacticName")]
    return sum("tf32" in name.lower() for name in names), len(names)


def layer_type(spelled: str) -> str:
    """Return the precision that the inspector means by *spelled*, empty if it is none known."""
    return next((name for name, pattern in SPELLINGS if re.search(pattern, spelled, re.IGNORECASE)), "")


def ran_precision(layers: Counter[str], asked: str) -> str:
    """Return the type that most layers read; TF32 is fp32 that the engine was allowed to round.

    int8 is what an engine is called in which any layer reads it: `find_float_convolutions` asks for more.
    """
    if asked == "int8" and layers["int8"]:
        return asked
    floats = Counter({name: count for name, count in layers.items() if name in ("fp32", "fp16", "bf16")})
    if not floats:
        return "unknown"
    most = floats.most_common(1)[0][0]
    return "tf32" if most == "fp32" and asked == "tf32" else most


def find_fallback(layers: Counter[str], asked: str, compute_capability: tuple[int, int], tf32: int = 0) -> str:
    """Return which precision was silently not used, or an empty text.

    Args:
        layers: By the type that they read.
        asked: Precision of the case.
        compute_capability: Of the GPU.
        tf32: How many run a kernel that says TF32. The inspector's types do not tell that from fp32.
    """
    if asked == "fp32" and tf32:
        return f"{tf32} layers run in tf32"
    if asked in ("fp16", "int8") and layers and not layers[asked]:
        return f"no layer reads {asked}"
    if asked == "tf32" and compute_capability < (8, 0):  # TF32 came with Ampere
        return "no TF32 below compute capability 8.0"
    return ""


def find_float_convolutions(convolutions: Counter[str], kept: int = 0) -> str:
    """Return how more of an int8 engine's *convolutions* than *kept* read floats; empty where none is known."""
    return explain_floats(convolutions["int8"], convolutions.total(), kept) if convolutions else ""
