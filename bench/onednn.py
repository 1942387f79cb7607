"""What oneDNN, to which torch gives its convolutions on a CPU, says that it ran."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from bench.records import Case, Scalar
from lensing_models.registry import find_task

if TYPE_CHECKING:
    import torch

#: Kinds of primitives that multiply.
PRODUCTS = ("convolution", "inner_product", "matmul")
#: What a processor must have for oneDNN to multiply bfloat16 and not to emulate it; x86 alone is asked.
BF16_ABILITIES = ("avx512_bf16", "amx_bf16", "avx_ne_convert")
PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
#: Environment variables that let fp32 be multiplied in less (oneDNN, "Primitive attributes: floating-point math mode").
FPMATH_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
#: Those that put more into its lines, or fewer of them.
VERBOSE_VARIABLES = tuple(f"{library}_VERBOSE{what}" for library in ("ONEDNN", "DNNL") for what in ("", "_TIMESTAMP"))
#: A line of its verbose mode: kind, implementation, memory descriptors, attributes (oneDNN 3, "Verbose Mode").
LINE = re.compile(
    r"^onednn_verbose,v1,primitive,exec,cpu,(?P<kind>\w+),(?P<name>[^,]*),[^,]*,(?P<memory>[^,]*),(?P<attributes>[^,]*),"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A primitive that multiplied.

    Attributes:
        precision: Of its input, as in `bench.records.Case`, or oneDNN's own word for another.
        implementation: As oneDNN names it, e.g. ``brg_conv_fwd:avx512_core_amx``.
        math: What products of fp32 numbers may be rounded to; empty for fp32.
    """

    precision: str
    implementation: str
    math: str = ""


def settle_environment() -> None:
    """Have oneDNN multiply fp32 numbers as such and tell of it as `LINE` says; before it is first used."""
    for name in (*FPMATH_VARIABLES, *VERBOSE_VARIABLES):
        os.environ.pop(name, None)


def products_of(call: Callable[[], object]) -> list[Product]:
    """Return the products that oneDNN computes in *call*."""
    import torch

    mkldnn: Any = torch.backends.mkldnn  # torch leaves it unannotated
    with tempfile.TemporaryFile() as file:
        with _written_to(file), mkldnn.verbose(mkldnn.VERBOSE_ON):
            call()
        file.seek(0)
        return list(read_products(file.read().decode(errors="replace")))


def read_products(text: str) -> Iterator[Product]:
    """Yield the products in what oneDNN's verbose mode wrote."""
    for line in text.splitlines():
        found = LINE.match(line)
        if found and found["kind"] in PRODUCTS:
            source = re.search(r"src\w*:(\w+):", found["memory"])
            math = re.search(r"attr-fpmath:(\w+)", found["attributes"])
            is_strict = math is None or math[1] == "strict"
            yield Product(
                precision=PRECISIONS.get(source[1], source[1]) if source else "unknown",
                implementation=found["name"],
                math="" if is_strict or math is None else math[1],
            )


def describe_products(call: Callable[[torch.Tensor], object], case: Case) -> Mapping[str, Scalar]:
    """Return what oneDNN ran in one *call* of a session of torch's on noise, for its evidence; nothing without it."""
    import torch

    mkldnn: Any = torch.backends.mkldnn  # torch leaves it unannotated
    if case.device != "cpu" or not mkldnn.is_available():
        return {}
    images = torch.rand(case.batch_size, *find_task(case.task).image_shape)

    def run() -> None:
        with torch.inference_mode():
            call(images)

    return judge_products(products_of(run), case.precision, is_emulated(case.precision))


def judge_products(products: list[Product], precision: str, emulated: bool) -> Mapping[str, Scalar]:
    """Return the facts about *products*, and why they are a fallback from *precision*, if so.

    Args:
        products: Of one call. fp32 need not have any: torch has kernels of its own for it.
        precision: Of the case.
        emulated: Whether the processor does not know it.
    """
    counts = Counter(product.precision for product in products)
    names = Counter(product.implementation for product in products)
    facts: dict[str, Scalar] = {
        "onednn_products": " ".join(f"{name}:{count}" for name, count in sorted(counts.items())),
        "onednn_kernels": " ".join(f"{name}={count}" for name, count in sorted(names.items())),
    }
    rounded = sorted({product.math for product in products if product.math})
    others = len(products) - counts[precision]
    if emulated:
        facts["fallback"] = f"this processor does not multiply {precision}; it is emulated"
    elif rounded:
        facts["fallback"] = f"oneDNN multiplied fp32 in {' '.join(rounded)}"
    elif others or (precision != "fp32" and not products):
        facts["fallback"] = f"oneDNN multiplied {counts[precision]} of {len(products)} in {precision}"
    return facts


def is_emulated(precision: str) -> bool:
    """Return whether this processor cannot multiply *precision*, as far as can be told: of x86, and bf16."""
    import torch

    if precision != "bf16" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    abilities = torch.cpu.get_capabilities()
    return not any(abilities.get(name) for name in BF16_ABILITIES)


@contextmanager
def _written_to(file: BinaryIO) -> Iterator[None]:
    """Have *file* take what this process, its C libraries included, writes to its standard output meanwhile."""
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    library.fflush(None)
    before = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(before, 1)
        os.close(before)
