from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bench.onednn import (
    FPMATH_VARIABLES,
    VERBOSE_VARIABLES,
    Product,
    describe_products,
    is_emulated,
    judge_products,
    products_of,
    read_products,
    settle_environment,
)
from tests.bench.conftest import make_case

HEAD = "onednn_verbose,v1,primitive,exec,cpu"
#: As torch 2.14's oneDNN 3.12 wrote them on an EPYC, shortened.
CONVOLUTION = (
    f"{HEAD},convolution,brg_conv_fwd:avx512_core_bf16,forward_training,src:bf16::blocked:acdb::f0 "
    "wei:bf16:ap:blocked:Adcb16a::f0 bia:bf16:a:blocked:a::f0 dst:bf16::blocked:acdb::f0,attr-scratchpad:user,"
    "alg:convolution_direct,mb2_ic1oc8_ih8oh6kh3sh1dh0ph0_iw8ow6kw3sw1dw0pw0,0.0139"
)
REORDER = (
    f"{HEAD},reorder,jit:uni,undef,src:f32::blocked:acdb::f0 dst:bf16:p:blocked:Adcb16a::f0,attr-scratchpad:user,,"
    "8x1x3x3,0.0009"
)
ROUNDED = (
    f"{HEAD},inner_product,brgemm:avx512_core_bf16,forward_inference,src:f32::blocked:ab::f0 wei:f32::blocked:ab::f0 "
    "dst:f32::blocked:ab::f0,attr-scratchpad:user attr-fpmath:bf16,,mb2ic8oc3,0.004"
)

BF16 = Product(precision="bf16", implementation="brg_conv_fwd:avx512_core_bf16")
FP32 = Product(precision="fp32", implementation="brg_conv_fwd:avx512_core")


def test_products_are_read_with_what_their_numbers_were_rounded_to() -> None:
    text = "\n".join(["onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2", REORDER, CONVOLUTION, ROUNDED, "other"])

    assert list(read_products(text)) == [
        BF16,
        Product(precision="fp32", implementation="brgemm:avx512_core_bf16", math="bf16"),
    ]


@pytest.mark.parametrize(
    ("products", "precision", "emulated", "said"),
    [
        ([BF16, BF16], "bf16", False, None),
        ([FP32], "fp32", False, None),
        ([], "fp32", False, None),  # torch has kernels of its own for fp32
        ([BF16, FP32], "bf16", False, "oneDNN multiplied 1 of 2 in bf16"),
        ([], "bf16", False, "oneDNN multiplied 0 of 0 in bf16"),
        ([BF16], "fp32", False, "oneDNN multiplied 0 of 1 in fp32"),
        ([BF16], "bf16", True, "this processor does not multiply bf16; it is emulated"),
        (
            [Product(precision="fp32", implementation="any", math="bf16")],
            "fp32",
            False,
            "oneDNN multiplied fp32 in bf16",
        ),
    ],
)
def test_whatever_else_was_multiplied_is_a_fallback(
    products: list[Product], precision: str, emulated: bool, said: str | None
) -> None:
    assert judge_products(products, precision, emulated).get("fallback") == said


def test_the_facts_count_precisions_and_kernels() -> None:
    facts = judge_products([BF16, BF16, FP32], "bf16", emulated=False)

    assert facts["onednn_products"] == "bf16:2 fp32:1"
    assert facts["onednn_kernels"] == "brg_conv_fwd:avx512_core=1 brg_conv_fwd:avx512_core_bf16=2"


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_what_torch_runs_is_what_onednn_tells(dtype: torch.dtype, precision: str) -> None:
    if is_emulated(precision):
        pytest.skip("this processor does not multiply bf16")
    layer = torch.nn.Conv2d(3, 16, 3).to(dtype).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)

    with torch.inference_mode():
        products = products_of(lambda: layer(images))

    assert [product.precision for product in products] == [precision]
    assert products[0].math == ""


@needs_onednn
def test_a_network_that_computes_in_fp32_is_no_bf16(capfd: pytest.CaptureFixture[str]) -> None:
    layer = torch.nn.Conv2d(1, 16, 3).to(memory_format=torch.channels_last)

    facts = describe_products(layer, make_case(precision="bf16"))

    assert "fallback" in facts
    print("heard again")
    assert capfd.readouterr().out == "heard again\n"  # and nothing of what oneDNN wrote


def test_a_torch_without_onednn_has_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    assert describe_products(lambda images: images, make_case(precision="bf16")) == {}


def test_on_cuda_there_is_nothing_to_tell() -> None:
    assert describe_products(lambda images: images, make_case(device="cuda")) == {}


def test_the_environment_has_no_say_in_how_fp32_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FPMATH_VARIABLES, *VERBOSE_VARIABLES):
        monkeypatch.setenv(name, "1")

    settle_environment()

    assert not {*FPMATH_VARIABLES, *VERBOSE_VARIABLES} & os.environ.keys()


@needs_onednn
def test_a_process_that_is_told_to_round_products_is_caught() -> None:
    code = """
import torch
from bench.onednn import products_of
last = torch.channels_last
layer = torch.nn.Conv2d(3, 16, 3).to(memory_format=last)
images = torch.rand(2, 3, 16, 16).contiguous(memory_format=last)
with torch.inference_mode():
    print([product.math for product in products_of(lambda: layer(images))])
"""

    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "bf16" in answer.stdout
