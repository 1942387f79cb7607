from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.backends import tensorrt_engine
from bench.backends.base import has_nvidia_driver
from bench.backends.tensorrt_engine import BACKEND
from bench.qdq_pairs import count_float_convolutions
from bench.records import Case
from bench.tensorrt_report import (
    count_layers,
    count_tf32,
    find_fallback,
    find_float_convolutions,
    layer_type,
    ran_precision,
)
from lensing_models.network import LensNetwork
from tests.bench.conftest import GivenImages
from tests.bench.test_qdq_graph import small_network as network_with_a_depthwise_layer

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = (
    ROOT / "bench" / "tensorrt_build.py",
    ROOT / "bench" / "tensorrt_report.py",
    ROOT / "bench" / "backends" / "tensorrt_engine.py",
)
VERSIONS = ("10.13.3.9", "10.16.1.11", "11.4.0.106")
CASE = Case(
    task="substructure",
    architecture="resnet18",
    backend="trt",
    precision="fp32",
    batch_size=4,
    device="cuda",
    threads=1,
)

# The contract: what the sources use exists in the real bindings

Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=VERSIONS)
def python_with_bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Return a runner of Python with the real bindings of one version over a stub of the library."""
    version: str = request.param
    name = f"tensorrt-bindings-{version}"
    cache = request.config.cache
    wheel = find_wheel(version, cache.mkdir(name) if cache else tmp_path_factory.mktemp(name))
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    compile_stub(folder, version.partition(".")[0])
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "LD_LIBRARY_PATH": str(folder)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=os.environ | paths, capture_output=True, text=True, check=False
        )

    return run


def find_wheel(version: str, folder: Path) -> Path:
    """Return the wheel for this Python, fetched once into the cache of pytest."""
    pattern = f"*-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    if not list(folder.glob(pattern)):
        wanted = f"tensorrt-cu13-bindings=={version}"
        pip = [sys.executable, "-m", "pip", "--retries=1", "--timeout=15", "download"]
        options = ["--no-deps", "--only-binary=:all:", f"--dest={folder}"]
        fetched = subprocess.run([*pip, *options, wanted], capture_output=True, text=True, check=False)
        if fetched.returncode != 0:
            last = (fetched.stderr.strip() or "pip said nothing").splitlines()[-1]
            pytest.skip(f"pip cannot fetch {wanted}: {last}")
    return next(folder.glob(pattern))


def compile_stub(folder: Path, major: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stub library needs Linux and a C compiler")
    nothing = folder / "nothing.c"
    nothing.touch()
    for name, source in (
        ("nvinfer", HERE / "tensorrt_stub.c"),
        ("nvinfer_plugin", nothing),
        ("nvonnxparser", nothing),
    ):
        library = folder / f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


def test_every_use_of_tensorrt_exists_in_the_bindings(python_with_bindings: Python) -> None:
    checked = python_with_bindings(HERE / "tensorrt_contract.py", *SOURCES)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert ", 0 problems" in checked.stdout


FAULTY = """
from __future__ import annotations
from typing import Any
import tensorrt as trt

def build(builder: trt.Builder, engine: trt.ICudaEngine, mystery: Any) -> None:
    trt.BuilderFlag.TF64
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.set_flags(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.TF32, True)
    config.set_flag(flagg=trt.BuilderFlag.TF32)
    engine.num_io_tensors = 3
    mystery.run()
    anonymous = builder.create_network(0)
    anonymous.num_layers
    builder.create_network(0).num_layers
    profile: trt.IBuilderConfig = builder.create_optimization_profile()
    [hidden.name for hidden in [builder]]
    getattr(builder, "platform_has_fast_fp64")()

class Logger(trt.ILogger):
    def log(self, message: str) -> None: ...
"""


@pytest.fixture(scope="module")
def fault_report(python_with_bindings: Python, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what the checker prints about FAULTY: a summary, then a line a problem."""
    faulty = tmp_path_factory.mktemp("faulty") / "faulty.py"
    faulty.write_text(FAULTY)
    checked = python_with_bindings(HERE / "tensorrt_contract.py", faulty)
    assert checked.returncode == 1, checked.stderr
    return checked.stdout.splitlines()


@pytest.mark.parametrize(
    "problem",
    [
        "7: trt.BuilderFlag.TF64 is missing",
        "9: IBuilderConfig.set_flags is missing",
        "10: IBuilderConfig.set_flag takes ('flag',), not config.set_flag(trt.BuilderFlag.TF32, True)",
        "11: IBuilderConfig.set_flag takes ('flag',), not config.set_flag(flagg=trt.BuilderFlag.TF32)",
        "12: ICudaEngine.num_io_tensors cannot be set",
        "13: cannot classify mystery; annotate it",
        "15: cannot classify anonymous; annotate it",
        "16: cannot classify builder.create_network(0); annotate it",
        "17: annotated trt.IBuilderConfig, but it is IOptimizationProfile",
        "18: cannot classify hidden; annotate it",
        "19: cannot classify getattr(builder, 'platform_has_fast_fp64'), which is called",
        "22: ILogger.log is called with ('severity', 'msg'), not ('message',)",
    ],
)
def test_contract_checker_reports_a_planted_fault(fault_report: list[str], problem: str) -> None:
    assert f"faulty.py:{problem}" in fault_report


def test_contract_checker_reports_nothing_but_the_planted_faults(fault_report: list[str]) -> None:
    assert len(fault_report) == 1 + 12, fault_report


def test_build_names_the_step_when_tensorrt_gives_no_builder(python_with_bindings: Python) -> None:
    code = """
import sys, pathlib, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from bench.tensorrt_build import BuildArguments, build_plan
try:
    build_plan(pathlib.Path("absent.onnx"), BuildArguments(batch_size=1, tf32=False))
except RuntimeError as error:
    print(error)
"""

    ran = python_with_bindings("-c", code)

    assert ran.stdout.strip() == "TensorRT could not create a builder: TensorRT logged no error", ran.stderr


def test_logger_keeps_errors_and_of_warnings_those_of_memory(python_with_bindings: Python) -> None:
    code = """
import sys, tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
from bench.tensorrt_build import collecting_logger
errors = []
logger = collecting_logger(errors)
for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
    logger.log(getattr(trt.ILogger, severity), severity)
    logger.log(getattr(trt.ILogger, severity), f"{severity} insufficient memory")
print(*errors, sep=", ")
"""

    ran = python_with_bindings("-c", code)

    of_memory = "INTERNAL_ERROR insufficient memory, ERROR, ERROR insufficient memory, WARNING insufficient memory"
    assert ran.stdout.strip() == f"INTERNAL_ERROR, {of_memory}", ran.stderr


# What the backend says before anything is built


@pytest.mark.skipif(has_nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_probe_names_the_missing_driver() -> None:
    assert BACKEND.probe("cpu").reason.startswith("no NVIDIA driver on this machine")


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_probe_names_the_install_line_where_the_package_is_missing() -> None:
    assert "tensorrt is not installed; pip install 'lensing-bench[trt]'" in BACKEND.probe("cuda").reason


def test_probe_imports_no_tensorrt() -> None:
    code = """
import sys
from bench.backends.tensorrt_engine import BACKEND
BACKEND.probe("cuda")
print("tensorrt" in sys.modules)
"""

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert ran.stdout.strip() == "False"


@pytest.mark.skipif(has_nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_prepare_without_a_driver_raises_before_tensorrt_can_crash(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        BACKEND.prepare(small_network(), CASE, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_refuse_lets_a_cuda_precision_pass(precision: str) -> None:
    assert BACKEND.refuse(replace(CASE, precision=precision)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "NVIDIA GPUs only"),
        ({"precision": "bf16"}, "has no bf16; it has fp32, tf32, fp16, int8"),
    ],
)
def test_refuse_says_why(change: dict[str, str], reason: str) -> None:
    refused = BACKEND.refuse(replace(CASE, **change))  # type: ignore[arg-type]  # every changed field is text

    assert refused is not None
    assert reason in refused


# An int8 engine for which TensorRT has no kernel


@pytest.fixture
def machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the builder, which refuses depthwise convolutions in 8 bits; return the graphs it was given."""
    given: list[Path] = []

    def find_or_build(path: Path, *_: object) -> str:
        given.append(path)
        if count_float_convolutions(path) == 0:
            raise RuntimeError("TensorRT could not build an engine: Could not find any implementation for node dw")
        return "engine"

    monkeypatch.setattr(tensorrt_engine, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(tensorrt_engine, "engine_host", lambda: None)
    monkeypatch.setattr(tensorrt_engine, "find_or_build", find_or_build)
    monkeypatch.setattr(tensorrt_engine, "TensorRTSession", lambda engine, host, case, slots, facts: facts)
    return given


def test_depthwise_convolutions_stay_float_where_tensorrt_has_no_kernel_for_them(
    machine_without_a_gpu: list[Path], workdir: Path
) -> None:
    network = network_with_a_depthwise_layer()
    network.calibration = GivenImages(torch.rand(8, 1, 12, 12))

    facts = BACKEND.prepare(network, replace(CASE, precision="int8"), workdir)

    assert [count_float_convolutions(path) for path in machine_without_a_gpu] == [0, 1]
    assert facts["kept_unbuildable"] == "depthwise convolutions"  # type: ignore[index]  # what stands for the session
    assert facts["float_convolutions"] == 1  # type: ignore[index]  # as above


def test_a_network_without_them_fails_with_tensorrts_own_reason(
    machine_without_a_gpu: list[Path], workdir: Path
) -> None:
    network = small_network()
    network.calibration = GivenImages(torch.rand(8, 1, 50, 50))

    with pytest.raises(RuntimeError, match="any implementation for node dw"):
        BACKEND.prepare(network, replace(CASE, precision="int8"), workdir)


# What ran, read from the inspector's report


# Spellings of NVIDIA's documentation (developer guide 10.x, migration guide 10.x to 11.x).
@pytest.mark.parametrize(
    ("spelled", "precision"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Int64", "int64"),
        ("UInt8", ""),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_layer_type_reads_the_documented_spellings(spelled: str, precision: str) -> None:
    assert layer_type(spelled) == precision


@pytest.mark.parametrize("field", ["Format/Datatype", "DataType"])
def test_count_layers_reads_the_reports_of_10_and_11(field: str) -> None:
    report = f"""{{"Layers": [
        {{"Name": "in", "Inputs": [{{"{field}": "Float"}}], "Outputs": [{{"{field}": "Half"}}]}},
        {{"Name": "conv", "Inputs": [{{"{field}": "Half"}}], "Outputs": [{{"{field}": "Half"}}]}},
        {{"Name": "constant", "Inputs": []}}, "only a name"]}}"""

    assert count_layers(report) == {"fp32": 1, "fp16": 1}


def test_convolutions_are_counted_by_what_they_read() -> None:
    report = """{"Layers": [
        {"Name": "images_Q", "LayerType": "Reformat", "Inputs": [{"DataType": "Float"}]},
        {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"DataType": "Int8"}]},
        {"Name": "b", "LayerType": "gemm", "ParameterType": "Convolution", "Inputs": [{"DataType": "Float"}]},
        {"Name": "c", "LayerType": "fusion", "ConvParameterType": "Convolution", "Inputs": [{"DataType": "Half"}]}]}"""

    assert count_layers(report, kind="convolution") == {"int8": 1, "fp32": 1, "fp16": 1}


def test_kernels_that_round_to_tf32_are_counted_by_their_names() -> None:
    report = """{"Layers": [{"Name": "a", "TacticName": "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"},
        {"Name": "b", "TacticName": "sm80_xmma_fprop_f32f32_f32f32"}, {"Name": "c"}]}"""

    assert count_tf32(report) == (1, 2)


def test_fp32_engine_with_kernels_that_round_to_tf32_is_a_fallback() -> None:
    assert find_fallback(Counter(fp32=22), "fp32", (9, 0), tf32=3) == "3 layers run in tf32"
    assert find_fallback(Counter(fp32=22), "tf32", (9, 0), tf32=3) == ""


@pytest.mark.parametrize(
    ("convolutions", "kept", "said"),
    [
        (Counter(int8=16, fp32=4), 4, ""),
        (Counter(int8=2, fp32=6), 6, ""),
        (Counter(int8=16, fp32=4), 3, "16 of 20 convolutions ran in int8, 17 are meant to"),
        (Counter(int8=2, fp32=2), 0, "2 of 4 convolutions ran in int8"),
        (Counter(), 0, ""),
    ],
)
def test_int8_engine_of_float_convolutions_is_a_fallback(convolutions: Counter[str], kept: int, said: str) -> None:
    assert find_float_convolutions(convolutions, kept) == said


def test_int8_engine_without_int8_layers_is_a_fallback() -> None:
    assert find_fallback(Counter(fp32=22), "int8", (9, 0)) == "no layer reads int8"
    assert ran_precision(Counter(fp32=22), "int8") == "fp32"


def test_ran_precision_is_what_most_layers_read() -> None:
    assert ran_precision(Counter(fp16=20, fp32=2), "fp16") == "fp16"


def test_ran_precision_is_unknown_where_the_report_tells_no_types() -> None:
    assert ran_precision(Counter(), "fp16") == "unknown"


def test_fp16_engine_without_fp16_layers_is_a_fallback() -> None:
    assert find_fallback(Counter(fp32=22), "fp16", (9, 0)) == "no layer reads fp16"


def test_tf32_before_ampere_is_a_fallback() -> None:
    assert find_fallback(Counter(fp32=22), "tf32", (7, 5)) == "no TF32 below compute capability 8.0"


def test_precision_that_ran_as_asked_is_no_fallback() -> None:
    assert find_fallback(Counter(fp16=20, fp32=2), "fp16", (9, 0)) == ""


# On a GPU


def small_network() -> LensNetwork:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    return LensNetwork(backbone, image_size=50, input_size=50, output_count=3).eval()


@pytest.fixture
def needs_tensorrt() -> None:
    available = BACKEND.probe("cuda")
    if not available.version:
        pytest.skip(available.reason)
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
# fp32: the tolerance of parity; tf32 and fp16 keep 10 bits of mantissa: 2^-10 a product, ten times that a network.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 1e-2), ("fp16", 1e-2)])
def test_session_agrees_with_eager_float64(precision: str, tolerance: float, tmp_path: Path) -> None:
    images = torch.rand(4, 1, 50, 50)
    with torch.inference_mode():
        reference = small_network().backbone.double()(images.double())

    with BACKEND.prepare(small_network(), replace(CASE, precision=precision), tmp_path) as session:
        outputs = session.infer(images.cuda())
        session.synchronize()
        error = (outputs.cpu().double() - reference).abs().max() / reference.square().mean().sqrt()
        evidence = session.evidence()

    assert error <= tolerance
    assert evidence["precision"] == precision
    assert "fallback" not in evidence


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
def test_int8_session_agrees_with_the_float_network_to_a_few_steps_of_8_bits(tmp_path: Path) -> None:
    network, images = small_network(), torch.rand(4, 1, 50, 50)
    network.calibration = GivenImages(torch.rand(16, 1, 50, 50))
    with torch.inference_mode():
        reference = small_network().backbone.double()(images.double())

    with BACKEND.prepare(network, replace(CASE, precision="int8"), tmp_path) as session:
        outputs = session.infer(images.cuda())
        session.synchronize()
        error = (outputs.cpu().double() - reference).abs().max() / reference.square().mean().sqrt()
        evidence = session.evidence()

    assert error <= 0.05
    assert evidence["precision"] == "int8"
    assert "fallback" not in evidence


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
def test_two_slots_keep_their_own_outputs(tmp_path: Path) -> None:
    first, second = torch.rand(2, 4, 1, 50, 50, device="cuda").unbind()
    with BACKEND.prepare(small_network(), CASE, tmp_path, slots=2) as session:
        alone = session.infer(first)
        session.synchronize()
        alone = alone.clone()

        together = session.infer(first, slot=0)
        session.infer(second, slot=1)
        session.synchronize()

        assert torch.equal(together, alone)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
def test_unaligned_images_give_the_same_outputs(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 50, 50, device="cuda")
    shifted = torch.empty(images.numel() + 1, device="cuda")[1:].view_as(images).copy_(images)
    with BACKEND.prepare(small_network(), CASE, tmp_path) as session:
        aligned = session.infer(images)
        session.synchronize()
        aligned = aligned.clone()

        outputs = session.infer(shifted)
        session.synchronize()

        assert torch.equal(outputs, aligned)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
def test_second_preparation_reuses_the_engine(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 50, 50, device="cuda")
    with BACKEND.prepare(small_network(), CASE, tmp_path) as session:
        session.infer(images)
        first, first_cached = session.evidence(), session.artifact_cached

    with BACKEND.prepare(small_network(), CASE, tmp_path) as session:
        session.infer(images)
        second, second_cached = session.evidence(), session.artifact_cached

    assert (first_cached, second_cached) == (False, True)
    assert first["timing_cache"] == second["timing_cache"] == "empty"
    assert first["engine_key"] == second["engine_key"]


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_tensorrt")
def test_batch_of_another_size_is_refused(tmp_path: Path) -> None:
    with (
        BACKEND.prepare(small_network(), CASE, tmp_path) as session,
        pytest.raises(ValueError, match=r"pad the batch"),
    ):
        session.infer(torch.rand(3, 1, 50, 50, device="cuda"))
