"""The imports go one way: argv -> plan -> session -> measurement -> record -> report."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for package in ("bench", "lensing_models") for path in (ROOT / package).rglob("*.py"))
BACKENDS = sorted(path for path in (ROOT / "bench" / "backends").glob("*.py") if path.stem not in {"__init__", "base"})
RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt", "timm", "lightning")
TELLING = (
    "bench.records",
    "bench.json_lines",
    "bench.machine_facts",
    "bench.machine",
    "bench.metrics",
    "bench.statistic",
    "bench.pareto",
    "bench.report",
    "bench.run",
    "bench.plan",
    "bench.scenario",
    "bench.scenario_page",
    "bench.scenario_record",
    "bench.margin",
    "bench.drift",
    "bench.drift_page",
    "bench.knob",
    "bench.level",
    "bench.tune_page",
)
BACKEND_MAY_IMPORT = {"bench.backends.base", "bench.records", "bench.export", "bench.quantize"}
#: What a backend needs beside: the builder of TensorRT engines, what torch's compiler is told, sessions, and what tells
#: of torch's products.
OWN_MODULE = {
    "tensorrt_engine": {"bench.tensorrt_build", "bench.tensorrt_report"},
    "eager": {"bench.onednn"},
    "torchscript": {"bench.onednn"},
    "inductor": {"bench.inductor_build", "bench.onednn"},
    "aoti": {"bench.inductor_build", "bench.onednn"},
    "onnx_runtime": {"bench.onnx_session", "bench.onnx_cuda"},
}


def imported(path: Path) -> Iterator[str]:
    """Yield every module that *path* imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [path for path in MODULES if name(path).startswith("lensing_models")], ids=name)
def test_lensing_models_never_imports_bench(path: Path) -> None:
    assert not [module for module in imported(path) if module.split(".")[0] == "bench"]


@pytest.mark.parametrize("path", [path for path in MODULES if name(path).startswith("bench")], ids=name)
def test_bench_never_imports_the_fit(path: Path) -> None:
    assert not {"lensing_models.fit", "lensing_models.train"} & set(imported(path))


@pytest.mark.parametrize("path", BACKENDS, ids=name)
def test_a_backend_imports_only_its_seam(path: Path) -> None:
    allowed = BACKEND_MAY_IMPORT | OWN_MODULE.get(path.stem, set())

    ours = {module for module in imported(path) if module.split(".")[0] == "bench"}

    assert all(any(module == seam or module.startswith(f"{seam}.") for seam in allowed) for module in ours)


@pytest.mark.parametrize("path", [path for path in MODULES if name(path).startswith("bench")], ids=name)
def test_only_measure_reads_clocks(path: Path) -> None:
    clocks = {"time", "timeit", "datetime"} & set(imported(path))

    assert not clocks or name(path) == "bench.measure"


def test_telling_imports_no_runtime() -> None:
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {TELLING!r}]; "
        f"from bench.backends import known_backends; known_backends(); "
        f"print([name for name in {RUNTIMES!r} if name in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert answer.stdout.strip() == "[]"
